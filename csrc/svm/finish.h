#pragma once
// From an approximate to an exact solution of the Frobenius attention SVM: block principal pivoting
// on the support, and column generation on the exact oracle. Torch-free.
#include "csrc/svm/problem.h"

namespace kktorch::csrc {

/// Block principal pivoting (Portugal, Judice and Vicente, Math. Comp. 1994) on S = the pairs with
/// lam > 0:  G_SS x = 1,  then drop x <= 0, add the pairs with A(A*(x)) < 1. With several selected
/// tokens G_SS is that of the features orthogonal to S_fin. The result is never worse than `best`.
void polish(const Problem& problem, const SvmSettings& settings, Monitor& monitor, Candidate& best);

enum class FinishStatus { kOptimal, kInfeasible, kGaveUp };

/// The oracle on a growing set of pairs: `best`'s support, then the 64 most violated pairs of each
/// solution. Exact; N + 1 and the set are limited to settings.polish_max.
FinishStatus finish(const Problem& problem, const SvmSettings& settings, Monitor& monitor,
                    Candidate& best);

/// The oracle on all pairs, h [M] or empty for 1.
FinishStatus solve_by_oracle(const Problem& problem, const SvmSettings& settings,
                             const std::vector<double>& h, Monitor& monitor, Candidate& best,
                             int64_t* pivots);

}  // namespace kktorch::csrc
