#pragma once
// Support vector regression with a given kernel matrix, solved by LIBSVM (Chang & Lin 2011):
//
//     max_c  -1/2 c^T K c + y^T c - tube |c|_1        -C <= c_j <= C,   sum_j c_j = 0
//     f(x) = sum_j c_j K(x, x_j) + bias
#include <ATen/core/Tensor.h>

namespace kktorch::primal_dual {

struct SvrOptions {
  double box = 1e4;         ///< C
  double tube = 0.05;       ///< errors below it are free
  double tolerance = 1e-8;  ///< of LIBSVM's stopping rule
};

struct SvrSolution {
  at::Tensor dual;  ///< c [N]
  double bias;
  at::Tensor predictions;  ///< f [M], by LIBSVM itself
};

/// @param gram     K(x_i, x_j) [N, N] float64  @param targets [N] float64
/// @param queries  K(x, x_j) [M, N] float64 of the points to predict.
/// @throws UserError if LIBSVM refuses the problem.
SvrSolution solve_svr(const at::Tensor& gram, const at::Tensor& targets, const at::Tensor& queries,
                      const SvrOptions& options);

/// How far a solution is from optimal, recomputed without the solver: the largest amount by which a
/// residual y_j - f(x_j) leaves what the sign and the bounds of c_j allow.
double svr_kkt_violation(const at::Tensor& gram, const at::Tensor& targets,
                         const SvrSolution& solution, const SvrOptions& options);

}  // namespace kktorch::primal_dual
