#pragma once
// Training of the factored network, whose optimum the convex program certifies (arXiv 2211.11052,
// (11) and (13)):
//
//     min sum_i L(sum_j g_ij (w1_j' X_i w2_j) w3_j, y_i) + beta/2 sum_j (|w2_j|^2 + |w3_j|_1^2)
//     w1_j in the simplex
//
// The objective is not convex, and its stationary points can be far from optimal at any width. The
// dual bound D of the convex program holds for every width, so that Objective - D says how far.
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>

#include "ops/convex_heads.h"

namespace kktorch {

struct FactoredOptions {
  std::string loss = "half_squared";
  std::optional<at::Tensor> gate = {};  ///< [N, P]; head j starts with gate j mod P
  int64_t classes = 0;                  ///< of class ids, 0: the largest + 1
  int64_t heads = 0;                    ///< of the network, where `start` is not given
  /// "palm": proximal steps with backtracking on w1, w2, w3 in turn, monotone. "adam": full-batch
  /// Adam with a subgradient of |w3|_1 and projection of w1. "adam_softmax": the same with w1 the
  /// softmax of logits. The learning rate of both falls to 0 along a cosine.
  std::string optimiser = "palm";
  double lr = 1e-2;         ///< of Adam
  int64_t max_iter = 1500;  ///< cycles of palm or steps of Adam in a round
  /// After a round: one proximal step of the convex program on the effective Z, which opens the
  /// groups that violate the dual constraints, and heads of the result.
  bool escape = true;
  int64_t max_escapes = 5;
  double tol_rel = 1e-6;  ///< converged at Objective - D <= tol_rel Objective
  int64_t seed = 1;
  std::optional<Heads> start = {};
  /// Multipliers of a solve of the convex program: a second dual bound.
  std::optional<at::Tensor> multipliers = {};
  bool catch_interrupt = false;  ///< Ctrl-C stops; the best heads are returned
  /// Given the iteration, the objective and the heads; false stops.
  std::function<bool(int64_t, double, const Heads&)> progress = {};
};

struct FactoredResult {
  Heads heads;         ///< float64, the best that were seen, balanced
  at::Tensor history;  ///< [iterations, 3] float64: iteration, seconds, objective
  double objective = 0, D = 0, gap = 0;
  /// "converged", "stationary" (no escape was asked for, or they did not help), "max_escapes",
  /// "insufficient_heads" (the escape needs more heads than there are), "interrupted".
  std::string status;
  int64_t iterations = 0, escapes = 0;
};

/// @param X  [N, n, d] float32 or float64 on the CPU; computed in float64.
/// @param Y  [N, c], or class ids int64 [N] of cross-entropy.
FactoredResult train_factored(const at::Tensor& X, const at::Tensor& Y, double beta,
                              const FactoredOptions& options);

}  // namespace kktorch
