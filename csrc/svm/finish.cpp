#include "csrc/svm/finish.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "csrc/svm/dense.h"
#include "csrc/svm/operators.h"
#include "csrc/svm/oracle.h"

namespace kktorch::csrc {
namespace {

std::vector<int64_t> support_of(const std::vector<double>& lam, double share) {
  const double largest = lam.empty() ? 0 : *std::max_element(lam.begin(), lam.end());
  std::vector<int64_t> support;
  for (size_t j = 0; j < lam.size(); ++j)
    if (lam[j] > share * largest) support.push_back(static_cast<int64_t>(j));
  return support;
}

/// The features a_j z_j^T of `subset` as rows, their parts orthogonal to S_fin.
std::vector<double> explicit_features(const Problem& problem, const std::vector<int64_t>& subset) {
  std::vector<double> a, z, rows(subset.size() * problem.N);
  problem.gather(problem.pairs.inequality, subset, a, z);
  for (size_t s = 0; s < subset.size(); ++s) {
    double* row = rows.data() + s * problem.N;
    for (int64_t i = 0; i < problem.rx; ++i)
      for (int64_t k = 0; k < problem.rz; ++k)
        row[i * problem.rz + k] = a[s * problem.rx + i] * z[s * problem.rz + k];
    if (!problem.finite.empty()) {
      const auto part = problem.finite.complement(row);
      std::copy(part.begin(), part.end(), row);
    }
  }
  return rows;
}

/// G_SS; with equality pairs the Schur complement G_SS - G_SE G_EE^+ G_ES.
std::vector<double> support_gram(const Problem& problem, const std::vector<int64_t>& S) {
  const auto count = static_cast<int64_t>(S.size());
  std::vector<double> G(count * count);
  if (problem.finite.empty()) {
    std::vector<double> a, z;
    problem.gather(problem.pairs.inequality, S, a, z);
    pair_gram(a.data(), z.data(), count, problem.rx, problem.rz, G.data());
  } else {
    const auto rows = explicit_features(problem, S);
    const auto view = row_major(rows.data(), problem.N);
    gemm(count, count, problem.N, 1, view, view.transposed(), G.data(), count);
  }
  return G;
}

/// G x = 1 by Cholesky and one step of refinement; a ridge, relative to the largest diagonal
/// element, is added where G is not numerically positive definite.
std::vector<double> solve_ones(const std::vector<double>& G, int64_t n) {
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, G[i * n + i]);
  for (double ridge = 0; ridge < 1e-6; ridge = ridge == 0 ? 1e-13 : 100 * ridge) {
    auto L = G;
    for (int64_t i = 0; i < n; ++i) L[i * n + i] += ridge * largest;
    if (!cholesky(L.data(), n, 1e-15 * largest)) continue;
    std::vector<double> x(n, 1.0), residual(n, 1.0);
    cholesky_solve(L.data(), n, x.data());
    gemm(n, 1, n, -1, row_major(G.data(), n), row_major(x.data(), 1), residual.data(), 1);
    cholesky_solve(L.data(), n, residual.data());
    for (int64_t i = 0; i < n; ++i) x[i] += residual[i];
    return x;
  }
  return {};
}

}  // namespace

void polish(const Problem& problem, const SvmSettings& settings, Monitor& monitor,
            Candidate& best) {
  auto S = support_of(best.lam, 1e-8);
  int64_t fewest = std::numeric_limits<int64_t>::max(), stalled = 0;
  for (int64_t round = 0; round < 30; ++round) {
    const auto count = static_cast<int64_t>(S.size());
    if (count == 0 || count > settings.polish_max) return;
    const auto x = solve_ones(support_gram(problem, S), count);
    if (x.empty()) return;
    std::vector<double> unclipped(problem.M), clipped(problem.M);
    for (int64_t i = 0; i < count; ++i) {
      unclipped[S[i]] = x[i];
      clipped[S[i]] = std::max(x[i], 0.0);
    }
    Candidate candidate{problem.adjoint(clipped), clipped, {}};
    candidate.c = problem.measure_dual(candidate.W, clipped);
    keep_better(best, std::move(candidate));
    if (!monitor.report("polish", round + 1, best.c)) return;

    const auto margins = problem.margins(problem.adjoint(unclipped));
    std::vector<char> inside(problem.M);
    for (const int64_t j : S) inside[j] = 1;
    std::vector<int64_t> next;
    int64_t changes = 0;
    for (int64_t j = 0; j < problem.M; ++j) {
      const bool keep = inside[j] ? unclipped[j] > 0 : margins[j] < 1 - 1e-11;
      changes += keep != (inside[j] != 0);
      if (keep) next.push_back(j);
    }
    if (changes == 0) return;
    stalled = changes < fewest ? 0 : stalled + 1;
    if (stalled == 5) return;
    fewest = std::min(fewest, changes);
    S = std::move(next);
  }
}

namespace {

struct SubsetSolution {
  FinishStatus status;
  Candidate candidate;
  int64_t pivots;
};

/// The oracle on the pairs of `subset`; the candidate is measured on all pairs.
SubsetSolution solve_subset(const Problem& problem, const SvmSettings& settings,
                            const std::vector<int64_t>& subset, const std::vector<double>& h,
                            Monitor& monitor, const Certificate& known) {
  LeastDistanceProblem ldp{.columns = explicit_features(problem, subset),
                           .h = std::vector<double>(subset.size(), 1.0),
                           .N = problem.N,
                           .rho = problem.rho > 0 ? problem.rho : 1,
                           .kappa_max = settings.kappa_max};
  for (size_t s = 0; s < subset.size() && !h.empty(); ++s) ldp.h[s] = h[subset[s]];
  auto solution = solve_least_distance(
      ldp, [&](int64_t pivots) { return monitor.report("oracle", pivots, known); });
  const auto as_candidate = [&](const LeastDistanceResult& found) {
    Candidate candidate{found.w, std::vector<double>(problem.M), {}};
    if (candidate.W.empty()) candidate.W.assign(problem.N, 0.0);
    for (size_t s = 0; s < subset.size(); ++s) candidate.lam[subset[s]] = found.lam[s];
    candidate.c = problem.measure(candidate.W, candidate.lam, SvmNorm::kFrobenius);
    return candidate;
  };
  using Status = LeastDistanceResult::Status;
  SubsetSolution result{FinishStatus::kGaveUp, as_candidate(solution), solution.pivots};
  if (solution.status == Status::kStopped) return result;
  if (result.candidate.c.kappa >= settings.kappa_max) {
    result.status = FinishStatus::kInfeasible;
    return result;
  }
  result.status = FinishStatus::kOptimal;
  // On part of the pairs the gap is the gap of all; compare margins on the part instead.
  if (h.empty() && solution.status == Status::kOptimal && refine_least_distance(ldp, solution)) {
    auto refined = as_candidate(solution);
    if (static_cast<int64_t>(subset.size()) < problem.M || refined.c.gap < result.candidate.c.gap)
      result.candidate = std::move(refined);
  }
  return result;
}

}  // namespace

FinishStatus finish(const Problem& problem, const SvmSettings& settings, Monitor& monitor,
                    Candidate& best) {
  if (problem.N + 1 > settings.polish_max) return FinishStatus::kGaveUp;
  auto S = support_of(best.lam, 1e-3);
  while (static_cast<int64_t>(S.size()) <= settings.polish_max) {
    auto found = solve_subset(problem, settings, S, {}, monitor, best.c);
    if (found.status == FinishStatus::kInfeasible) {
      best = std::move(found.candidate);
      return FinishStatus::kInfeasible;
    }
    const auto margins = problem.margins(found.candidate.W);
    keep_better(best, std::move(found.candidate));
    if (found.status == FinishStatus::kGaveUp) return FinishStatus::kGaveUp;
    std::vector<char> inside(problem.M);
    for (const int64_t j : S) inside[j] = 1;
    std::vector<int64_t> violated;
    for (int64_t j = 0; j < problem.M; ++j)
      if (!inside[j] && margins[j] < 1 - 1e-9) violated.push_back(j);
    if (violated.empty()) return FinishStatus::kOptimal;
    const size_t added = std::min<size_t>(64, violated.size());
    std::partial_sort(violated.begin(), violated.begin() + added, violated.end(),
                      [&](int64_t i, int64_t j) { return margins[i] < margins[j]; });
    S.insert(S.end(), violated.begin(), violated.begin() + added);
  }
  return FinishStatus::kGaveUp;
}

FinishStatus solve_by_oracle(const Problem& problem, const SvmSettings& settings,
                             const std::vector<double>& h, Monitor& monitor, Candidate& best,
                             int64_t* pivots) {
  std::vector<int64_t> all(problem.M);
  std::iota(all.begin(), all.end(), 0);
  auto found = solve_subset(problem, settings, all, h, monitor, best.c);
  *pivots = found.pivots;
  if (found.status == FinishStatus::kInfeasible)
    best = std::move(found.candidate);
  else
    keep_better(best, std::move(found.candidate));
  return found.status;
}

}  // namespace kktorch::csrc
