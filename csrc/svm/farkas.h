#pragma once
// Proofs of infeasibility by weighted least squares, for many more pairs than dimensions.
// Torch-free.
//
// lam >= 0 with A*(lam) = 0, lam != 0, proves that no W has A(W) > 0. From a positive lam, the
// multipliers that solve the equation with the least relative change,
//
//     min sum_j ((lam'_j - lam_j) / lam_j)^2  s.t.  A*(lam') = 0,
//     lam' = lam - D A(y),   A* D A y = A*(lam),   D = diag(lam^2),
//
// are a proof if they are >= 0; where they are not, lam shrinks, and the next step moves it less.
#include "csrc/svm/problem.h"

namespace kktorch::csrc {

/// @return true if `best` holds a proof (kappa >= kappa_max); otherwise it is unchanged. At most
/// eight steps, each Q N^2 / 4 + N^3 / 3; it gives up where y separates, and where the number of
/// negative multipliers no longer falls. Without equality pairs only.
bool prove_infeasible(const Problem& problem, const SvmSettings& settings, Candidate& best);

}  // namespace kktorch::csrc
