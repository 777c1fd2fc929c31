#pragma once
// Interior-point method for the Frobenius attention SVM with many more pairs than dimensions, where
// descent is slow (Mehrotra, SIAM J. Optim. 2 (1992), predictor and corrector). Torch-free.
//
//     min |W|_F^2 / 2   s.t.  A(W) - s = 1,  s >= 0          multipliers lam >= 0,  W = A*(lam)
//
// Newton's step solves (I + A* D A) dW = r with D = lam / s (normal_matrix.h): Q N^2 / 4 + N^3 / 3
// an iteration, memory N^2. Any iterate lam > 0 bounds the margin from above, any W with positive
// margins from below: every iterate is certified, and the best is kept. One selected token per
// query.
#include "csrc/svm/problem.h"

namespace kktorch::csrc {

/// Improves `best`, from which it starts, until gap <= tol, kappa >= kappa_max or no step is left.
/// @return iterations.
int64_t interior_point(const Problem& problem, const SvmSettings& settings, double tol,
                       Monitor& monitor, Candidate& best);

}  // namespace kktorch::csrc
