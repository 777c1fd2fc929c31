#pragma once
// The pair operators of the attention SVM, float64 and torch-free (notation: token_sets.h):
//
//     A(W)_j = a_j^T W z_j        A*(lam) = sum_j lam_j a_j z_j^T        G = A A*,  G_jk =
//     (a_j.a_k)(z_j.z_k)
//
// A evaluates y_q = W z_q and then (x_alpha - x_t).y_q; A* sums u_q = sum_t lam_t a_t and then
// u_q z_q^T. Cost of either Q dx dz + nnz dx, memory Q dx; the features a_j z_j^T are never formed.
// Parallel over blocks of queries; results do not depend on the number of threads.
#include "csrc/svm/token_sets.h"

namespace kktorch::csrc {

/// margins[list.size()] = A(W) on the pairs (anchor, entry) of `list`; W [dx, dz].
void pair_margins(const TokenSetsView<double>& sets, const std::vector<int64_t>& anchor,
                  const EntryList& list, const double* W, double* margins);

/// W [dx, dz] = A*(lam) on the pairs of `list`; lam [list.size()], of any sign.
void pair_adjoint(const TokenSetsView<double>& sets, const std::vector<int64_t>& anchor,
                  const EntryList& list, const double* lam, double* W);

/// |a_j| |z_j| of every pair of `list`.
void pair_norms(const TokenSetsView<double>& sets, const std::vector<int64_t>& anchor,
                const EntryList& list, double* norms);

/// rows[list.size(), dx]: a_j of every pair of `list`.
void pair_differences(const TokenSetsView<double>& sets, const std::vector<int64_t>& anchor,
                      const EntryList& list, double* rows);

/// G [count, count] of pairs given as rows a [count, dx] and z [count, dz].
void pair_gram(const double* a, const double* z, int64_t count, int64_t dx, int64_t dz, double* G);

}  // namespace kktorch::csrc
