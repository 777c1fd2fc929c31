#pragma once
// Fixed gates g_i(u) = 1{u1' X_i u2 >= 0} of the gated convex program, and what a certificate says
// about gates that are not in it.
#include <ATen/core/Tensor.h>

#include <string>

#include "ops/convex_solver.h"

namespace kktorch {

/// u1 [P, n], u2 [P, d] in float64, and the patterns bool [N, P] on the samples they were drawn
/// for.
struct Gates {
  at::Tensor u1, u2, pattern;
};

/// At most P distinct gates from at most 20 P draws of a generator of its own; a smaller number is
/// warned about. Gate 0 is open everywhere (u = 0) with `include_open`; all-closed patterns are
/// left out.
/// @param dist  "gaussian", or "simplex": u1 = |N| / sum |N|.
Gates sample_gates(const at::Tensor& X, int64_t P, int64_t seed,
                   const std::string& dist = "gaussian", bool include_open = true);

/// The patterns bool [N, P] of gates on other samples; a score of exactly 0 is open.
at::Tensor apply_gates(const at::Tensor& X, const at::Tensor& u1, const at::Tensor& u2);

/// What candidates would change; one entry per candidate, float64.
struct GateReport {
  at::Tensor violation;  ///< max_lk |sum_i g_i Lambda_il x_ik|; <= beta: Lambda stays feasible
  at::Tensor decrease;   ///< F of the enlarged program is at most F(Z) - this
  at::Tensor bound;      ///< lower bound of the enlarged program
  double all_gates;      ///< lower bound of the program with every gate there is
};

/// @param pattern  [N, M] of the candidates.
/// @param result   of a solve with options.gate.
GateReport gate_report(const at::Tensor& X, const at::Tensor& Y, double beta,
                       const ConvexResult& result, const at::Tensor& pattern,
                       const ConvexOptions& options);

struct ColumnGeneration {
  Gates gates;
  ConvexResult result;
  int64_t rounds = 0, sampled = 0;
  bool found_none = false;  ///< no violation among the sampled gates of the last two rounds
};

/// Column generation: in each round draws `candidates` gates, adds the `add` with the largest
/// violation above beta (1 + 1e-3), and solves again from the solution before; ends after two
/// rounds without violation or `max_rounds`.
ColumnGeneration solve_with_gates(const at::Tensor& X, const at::Tensor& Y, double beta,
                                  const Gates& start, ConvexOptions options, int64_t candidates,
                                  int64_t add, int64_t max_rounds, int64_t seed);

}  // namespace kktorch
