#pragma once
// Conjugate gradients on a face of the dual of the Frobenius attention SVM (dcd.h), one token per
// query: the multipliers that are 0 stay 0, the others are free, and what becomes negative is
// projected back (the subspace step of More and Toraldo, SIAM J. Optim. 1, 1991). Coordinate
// descent finds the face; this step solves the linear system on it, which is what descent is slow
// at. Torch-free. An iteration costs Q 4 dx dz + 4 |face| dx, in parallel.
#include "csrc/svm/problem.h"

namespace kktorch::csrc {

/// Improves lam >= 0 and W = A*(lam). `scale` [M]: 1 / G_jj. False if it finds nothing better.
bool face_step(const Problem& problem, const std::vector<double>& scale, std::vector<double>& lam,
               std::vector<double>& W);

}  // namespace kktorch::csrc
