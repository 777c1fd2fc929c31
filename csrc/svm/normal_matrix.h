#pragma once
// The matrix of weighted least squares over the pairs, factorized. Torch-free.
//
//     c I + A* D A = c I + sum_q (sum_t d_qt a_qt a_qt^T) (x) (z_q z_q^T)        [N, N], N = rx rz
//
// Both parts of a query are symmetric: with their lower triangles as rows, one product of
// [Q, rx (rx + 1) / 2]^T and [Q, rz (rz + 1) / 2] holds all of it, Q N^2 / 4 multiplications.
#include <vector>

#include "csrc/svm/problem.h"

namespace kktorch::csrc {

/// factor [N, N]: the Cholesky factor in the lower triangle; d [M] >= 0.
/// @return false if the matrix is not numerically positive definite.
bool factor_normal_matrix(const Problem& problem, const std::vector<double>& d, double c,
                          std::vector<double>& factor);

}  // namespace kktorch::csrc
