#include "csrc/svm/token_sets.h"

namespace kktorch::csrc {

TokenIndex cross_index(int64_t n, int64_t T) {
  TokenIndex index;
  for (int64_t q = 0; q <= n; ++q) index.row_ptr.push_back(q * T);
  return index;
}

TokenIndex sequence_index(int64_t n, int64_t T, bool causal) {
  TokenIndex index;
  index.row_ptr.push_back(0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < T; ++k) {
      for (int64_t t = 0; t < (causal ? k + 1 : T); ++t) index.tok.push_back(i * T + t);
      index.row_ptr.push_back(static_cast<int64_t>(index.tok.size()));
    }
  return index;
}

namespace {

/// selected(q, e): whether entry e of query q is selected.
template <typename Selected>
Pairs make_pairs(const int64_t* row_ptr, int64_t Q, const Selected& selected) {
  Pairs pairs;
  pairs.anchor.reserve(Q);
  pairs.inequality.ptr.assign(1, 0);
  pairs.equality.ptr.assign(1, 0);
  for (int64_t q = 0; q < Q; ++q) {
    int64_t anchor = -1;
    for (int64_t e = row_ptr[q]; e < row_ptr[q + 1]; ++e) {
      if (!selected(q, e))
        pairs.inequality.entry.push_back(e);
      else if (anchor < 0)
        anchor = e;
      else
        pairs.equality.entry.push_back(e);
    }
    pairs.anchor.push_back(anchor);
    pairs.inequality.ptr.push_back(pairs.inequality.size());
    pairs.equality.ptr.push_back(pairs.equality.size());
  }
  return pairs;
}

}  // namespace

Pairs pairs_of_alpha(const int64_t* row_ptr, int64_t Q, const int64_t* alpha) {
  return make_pairs(row_ptr, Q, [=](int64_t q, int64_t e) { return e == row_ptr[q] + alpha[q]; });
}

Pairs pairs_of_selection(const int64_t* row_ptr, int64_t Q, const bool* selected) {
  return make_pairs(row_ptr, Q, [=](int64_t, int64_t e) { return selected[e]; });
}

}  // namespace kktorch::csrc
