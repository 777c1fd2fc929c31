#pragma once
// The certified global solver of convex attention (arXiv 2211.11052, programs (9), (12), (14) and
// (33) in the corrected form of docs/convex_attention.md):
//
//     min over Z of  L(A(Z), Y) + beta Omega(Z)
//
// FISTA with a duality gap at every iteration (fista.h), rounds on working sets where few groups
// are active (working_groups.h), gap-safe screening of groups, Newton's method on the active groups
// where a step costs no more than some reads (newton.h), and a certificate in float64 over all
// groups at the end. Stops at gap <= max(tol_abs, tol_rel |F|).
#include <functional>
#include <memory>
#include <vector>

#include "csrc/convex/fista.h"

namespace kktorch::csrc {

enum class PenaltyKind { kGroup, kNuclear, kSequence, kSubstochastic };

/// What is solved; pointers outlive the call. Z is [P, c, n, d]; for sequences [2, n, c, n, d].
template <typename T>
struct ConvexData {
  int64_t N, n, d, c, P = 1;
  const T* X = nullptr;           ///< [N, n, d], or null with
  const int64_t* ids = nullptr;   ///< [N, n] in [0, d)
  const uint8_t* gate = nullptr;  ///< [N, P], or null
  Loss loss = Loss::kHalfSquared;
  Targets<T> targets = {};  ///< [N, c], of sequences [N, n, c]; or class ids
  PenaltyKind penalty = PenaltyKind::kGroup;
};

/// The samples that its predictions are made of.
template <typename T>
Samples<T> samples_of(const ConvexData<T>& data) {
  return {.N = data.N,
          .D = data.n * data.d,
          .P = data.P,
          .wide = data.X,
          .ids = data.ids,
          .n = data.n,
          .V = data.d,
          .gate = data.gate};
}

struct SolveOptions {
  double tol_rel = 1e-6, tol_abs = 0;
  int64_t max_iter = 20000;
  int64_t screen_every = 10;  ///< 0: no screening, no working sets
  double time_limit = 0;      ///< seconds, 0 = none
  double lip = 0;             ///< a known Lipschitz constant, 0 = estimate it
  bool newton = true;         ///< steps on the active groups, where they pay
  /// Called after every iteration; false stops with the best point so far.
  std::function<bool(const Iterate&)> progress = {};
};

struct Certificate {
  double objective, dual, gap, penalty;
};

template <typename T>
struct Solution {
  std::vector<T> Z;
  std::vector<double> multipliers;  ///< Lambda, [N, c] or [N, n, c]
  double objective = 0, dual = 0, gap = 0, beta_max = 0;
  double lip = 0;  ///< 0 where no step was over all groups
  Status status = Status::kMaxIter;
  int64_t iterations = 0, reads = 0, backtracks = 0, restarts = 0, screened = 0,
          newton_steps = 0;  ///< counted in iterations too
  std::vector<Iterate> history;
};

/// @param Z0  a start, or empty.
template <typename T>
Solution<T> solve_convex(const ConvexData<T>& data, double beta, const SolveOptions& options,
                         std::vector<T> Z0, const Parallel& parallel);

/// F(Z), the best dual value of its own residual and of `hint` (Lambda, may be null), in float64
/// over all groups. `multipliers`, if not null, receives Lambda of the better one.
template <typename T>
Certificate certify_convex(const ConvexData<T>& data, double beta, const double* Z,
                           const double* hint, const Parallel& parallel,
                           std::vector<double>* multipliers = nullptr);

/// Dual norm of the gradient at Z = 0: the null solution is optimal from there on.
template <typename T>
double convex_beta_max(const ConvexData<T>& data, const Parallel& parallel);

/// Upper bounds of the largest singular value of every token's features X[:, k, :], [n].
template <typename T>
std::vector<double> token_norms(const ConvexData<T>& data, const Parallel& parallel);

}  // namespace kktorch::csrc
