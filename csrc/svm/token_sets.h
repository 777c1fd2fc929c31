#pragma once
// Ragged token sets and their token pairs, the data of every attention-SVM computation
// (arXiv 2308.16898). Torch-free views; no data is copied.
//
// Query q, a vector z_q [dz], sees the tokens x[tok[e]], e in [row_ptr[q], row_ptr[q+1]), each of
// size dx; without tok, x[e]. An entry e is one (query, token) slot; there are nnz = row_ptr[Q].
// With alpha_q selected, entry t != alpha_q of q is the pair j with
//
//     a_j = x_{q,alpha_q} - x_{q,t}      z_j = z_q      A(W)_j = a_j^T W z_j
#include <algorithm>
#include <cstdint>
#include <vector>

namespace kktorch::csrc {

template <typename T>
struct TokenSetsView {
  const T* x;  ///< [N, dx]
  const T* z;  ///< [Q, dz]
  const int64_t* row_ptr;
  const int64_t* tok;  ///< [nnz], or null: entry e is row e of x
  int64_t N, dx, Q, dz;

  int64_t nnz() const { return row_ptr[Q]; }
  const T* token(int64_t entry) const { return x + (tok ? tok[entry] : entry) * dx; }
  const T* query(int64_t q) const { return z + q * dz; }
};

/// row_ptr and tok of regular data; tok is empty where entry e is row e of x.
struct TokenIndex {
  std::vector<int64_t> row_ptr, tok;
};
/// n queries with T tokens of their own each.
TokenIndex cross_index(int64_t n, int64_t T);
/// n sequences of T tokens; position k of sequence i is query i T + k and sees all T tokens, or
/// with `causal` the first k + 1.
TokenIndex sequence_index(int64_t n, int64_t T, bool causal);

/// Entries grouped by query: those of q are entry[ptr[q]] ... entry[ptr[q+1] - 1].
struct EntryList {
  std::vector<int64_t> ptr, entry;
  int64_t size() const { return static_cast<int64_t>(entry.size()); }
  /// The query of entry[j].
  int64_t query_of(int64_t j) const {
    return std::upper_bound(ptr.begin(), ptr.end(), j) - ptr.begin() - 1;
  }
};

/// The pairs of a selection. With several tokens selected, the pairs of a query share its first
/// selected entry as anchor: `equality` pairs it with the other selected ones, `inequality` with
/// the masked ones. With one token selected there are no equality pairs.
struct Pairs {
  std::vector<int64_t> anchor;  ///< [Q], an entry
  EntryList inequality, equality;
};

/// alpha: [Q], positions inside the sets. Must be in range.
Pairs pairs_of_alpha(const int64_t* row_ptr, int64_t Q, const int64_t* alpha);
/// selected: [nnz]; every query must have a selected entry.
Pairs pairs_of_selection(const int64_t* row_ptr, int64_t Q, const bool* selected);

}  // namespace kktorch::csrc
