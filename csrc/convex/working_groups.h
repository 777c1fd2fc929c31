#pragma once
// Working sets of groups: most groups are zero at the optimum, and iterations on the others cost a
// fraction of a read of the samples. A round solves the program of a working set to a part of the
// gap over all groups; the read that follows tells what is missing (celer: Massias, Gramfort,
// Salmon 2018, has the scheme).
#include <functional>
#include <vector>

#include "csrc/convex/fista.h"

namespace kktorch::csrc {

/// The groups to work on, ascending: those that are not zero and, of the rest, the largest among
/// those whose gradient is above beta, as many again at most. Empty where iterations on them would
/// not pay: they are more than a third of all, or a read is cheap anyway.
/// @param program  its penalty is a GroupPenalty.
/// @param samples  those of the program, `wide` or ids.
template <typename T>
std::vector<int64_t> working_groups(const ConvexProgram<T>& program, const Samples<T>& samples,
                                    const std::vector<T>& Z, const std::vector<T>& G);

struct Round {
  double lip;  ///< in: a guess; out: what it came to
  double gap;  ///< of the program of these groups, at which to stop
  int64_t backtracks = 0, restarts = 0;
};

/// FISTA on `groups`, in place.
/// @param after_step  is given the objective and the share of a read that the step took; false
/// ends.
template <typename T>
void iterate_on_groups(const ConvexProgram<T>& program, const Samples<T>& samples,
                       const std::vector<int64_t>& groups, std::vector<T>& Z, Round& round,
                       const std::function<bool(double objective, double cost)>& after_step);

}  // namespace kktorch::csrc
