#pragma once
// Newton's method on the active groups of the group-penalised program
//
//     min over z_g, g in S  of  L(A(z)) + beta sum_g |z_g|_2        S: the groups that are not zero
//
// Where no group is zero the objective is smooth, with
//
//     gradient  X_S' R + beta e_g,  e_g = z_g / |z_g|
//     Hessian   X_S' W X_S + blockdiag(beta (I - e_g e_g') / |z_g|)        W = d2L/dA2
//
// W is diagonal for losses that separate over outputs, which then have a system each, and
// diag(p) - p p' for cross-entropy. A step that would turn a group round sets it to zero; the step
// is halved until the objective falls (Armijo). Stops when every group's gradient is at most
// `accuracy` beta. Groups outside S stay zero: whoever calls has to check them (fista.h does).
// First-order steps find S, but need many iterations where tokens are alike, as in time series;
// here that costs nothing.
#include <functional>
#include <vector>

#include "csrc/convex/fista.h"

namespace kktorch::csrc {

/// Multiply-adds of one Newton step at Z over those of one read of the samples; infinite where the
/// active features would take too much memory.
double newton_cost(const ConvexProgram<double>& program, const Samples<double>& samples,
                   const std::vector<double>& Z);

/// Lowers the objective of Z in place.
/// @param program  its penalty is a GroupPenalty.
/// @param samples  those of the program, `wide`.
/// @param after_step  is given the objective; false ends.
void newton_steps(const ConvexProgram<double>& program, const Samples<double>& samples,
                  std::vector<double>& Z, double accuracy,
                  const std::function<bool(double)>& after_step);

}  // namespace kktorch::csrc
