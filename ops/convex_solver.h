#pragma once
// The convex programs of convex attention: solved to a certificate (arXiv 2211.11052; the corrected
// programs and what is claimed: docs/convex_attention.md).
//
//     min over Z  sum_i L(A_i, y_i) + beta Omega(Z)      A_il = sum_p g_ip <Z[p,l], X_i>
//
// Sums, not means: the loss is summed over samples and outputs. Losses: "half_squared" (a-y)^2/2,
// "squared", "logistic" (targets -1 or +1), "cross_entropy" (class ids or probabilities).
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "csrc/convex/solver.h"

namespace kktorch {

struct ConvexOptions {
  std::string loss = "half_squared";
  std::string penalty = "group";        ///< "group", "nuclear", "sequence", "substochastic"
  std::optional<at::Tensor> gate = {};  ///< [N, P] of zeros and ones
  int64_t num_values = 0;  ///< > 0: X are token ids [N, n], one-hot over as many values
  int64_t classes = 0;     ///< of class ids, 0: the largest + 1
  double tol_rel = -1;     ///< < 0: 1e-6 for float64, 1e-4 for float32
  double tol_abs = 0;
  int64_t max_iter = 20000;
  int64_t screen_every = 10;     ///< iterations between screenings; 0: none, and no working sets
  double time_limit = 0;         ///< seconds, 0: none
  double lip = 0;                ///< Lipschitz constant of an earlier solve, 0: estimated
  bool catch_interrupt = false;  ///< Ctrl-C stops the solve, which then returns its best point
  std::optional<at::Tensor> Z0 = {};
  std::function<bool(const csrc::Iterate&)> progress = {};
};

struct ConvexResult {
  /// [P, c, n, d]; for sequences C+ and C-: [2, c, d, n, n], blocks [row, column].
  at::Tensor Z;
  at::Tensor multipliers;  ///< Lambda, float64, shape of the predictions
  at::Tensor history;      ///< [iterations, 4] float64: iteration, seconds, F, gap
  double F = 0, D = 0, gap = 0, beta_max = 0, lip = 0;
  std::string status;
  int64_t iterations = 0, reads = 0, backtracks = 0, restarts = 0, screened = 0;
};

/// @param X  [N, n, d] float32 or float64 on the CPU, or token ids (num_values).
/// @param Y  [N, c] like X, or class ids int64 [N]; for sequences [N, n, c] or [N, n].
/// @throws c10::Error "solve: expected <what>, but got <values>". A solve that does not reach its
/// tolerance says so in `status`.
ConvexResult solve(const at::Tensor& X, const at::Tensor& Y, double beta,
                   const ConvexOptions& options = {});

/// beta = rho beta_max for descending rhos in (0, 1], each solve started from the one before.
std::vector<ConvexResult> solve_path(const at::Tensor& X, const at::Tensor& Y,
                                     const std::vector<double>& rhos,
                                     const ConvexOptions& options = {});

/// The exact sequence program, or its relaxation "substochastic".
ConvexResult solve_sequence(const at::Tensor& X, const at::Tensor& Y, double beta,
                            ConvexOptions options = {});

/// Dual norm of the gradient at Z = 0: the null solution is optimal from there on.
double beta_max(const at::Tensor& X, const at::Tensor& Y, const ConvexOptions& options = {});

struct ConvexCertificate {
  double F, D, gap, penalty;
  at::Tensor multipliers;
};

/// F(Z), the best dual bound from the residual at Z and from `hint` (multipliers of a solve), all
/// in float64. A gap in [-1e-9 max(F, F(0)), 0) is rounding and reported as 0.
ConvexCertificate certify(const at::Tensor& X, const at::Tensor& Y, double beta,
                          const at::Tensor& Z, const ConvexOptions& options = {},
                          const std::optional<at::Tensor>& hint = {});

/// Dual value -sum L*(Lambda; y) of a feasible Lambda, in float64.
double dual_value(const at::Tensor& multipliers, const at::Tensor& Y, const std::string& loss);

}  // namespace kktorch
