#include "csrc/svm/farkas.h"

#include <algorithm>

#include "csrc/svm/dense.h"
#include "csrc/svm/normal_matrix.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kSteps = 8, kStalled = 2;
constexpr double kShrink = 0.1;

using Numbers = std::vector<double>;

/// A(y) with A* D A y = A*(lam), from the factor of that matrix.
Numbers margins_of_step(const Problem& problem, const Numbers& factor, const Numbers& lam) {
  auto y = problem.adjoint(lam);
  cholesky_solve(factor.data(), problem.N, y.data());
  return problem.margins(y);
}

/// lam - D A(y).
Numbers moved(const Numbers& lam, const Numbers& d, const Numbers& margins) {
  Numbers next(lam.size());
  for (size_t j = 0; j < lam.size(); ++j) next[j] = lam[j] - d[j] * margins[j];
  return next;
}

}  // namespace

bool prove_infeasible(const Problem& problem, const SvmSettings& settings, Candidate& best) {
  Numbers lam(problem.M), d(problem.M), factor;
  for (int64_t j = 0; j < problem.M; ++j) lam[j] = problem.rho / problem.norms[j];
  int64_t fewest = problem.M + 1, stalled = 0;
  for (int64_t step = 1; step <= kSteps && stalled < kStalled; ++step) {
    for (int64_t j = 0; j < problem.M; ++j) d[j] = lam[j] * lam[j];
    if (!factor_normal_matrix(problem, d, 0, factor)) return false;
    const auto margins = margins_of_step(problem, factor, lam);
    if (*std::min_element(margins.begin(), margins.end()) > 0) return false;  // y separates
    auto next = moved(lam, d, margins);
    const auto negative = std::count_if(next.begin(), next.end(), [](double v) { return v < 0; });
    if (negative == 0) {
      next = moved(next, d, margins_of_step(problem, factor, next));  // without its rounding
      for (double& value : next) value = std::max(value, 0.0);
      Candidate found{problem.adjoint(next), next, {}};
      found.c = problem.measure_dual(found.W, found.lam);
      if (!(found.c.kappa >= settings.kappa_max)) return false;
      best = std::move(found);
      return true;
    }
    stalled = negative < fewest ? 0 : stalled + 1;
    fewest = std::min<int64_t>(fewest, negative);
    for (int64_t j = 0; j < problem.M; ++j) lam[j] = std::max(next[j], kShrink * lam[j]);
  }
  return false;
}

}  // namespace kktorch::csrc
