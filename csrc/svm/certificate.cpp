#include "csrc/svm/certificate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "csrc/svm/dense.h"
#include "csrc/svm/finite_part.h"
#include "csrc/svm/operators.h"
#include "csrc/svm/small_matrix.h"

namespace kktorch::csrc {
namespace {

constexpr double kRankCutoff = 1e-4;

int64_t count_above(const std::vector<double>& sigma, double share) {
  return std::count_if(sigma.begin(), sigma.end(),
                       [&](double s) { return s > 0 && s >= share * sigma[0]; });
}

/// rho sqrt(2 (P - D)).
double margin_error(double lower, double upper, double rho) {
  if (!(lower > 0)) return std::numeric_limits<double>::infinity();
  const double P = 1 / (2 * lower * lower), D = 1 / (2 * upper * upper);
  return rho * std::sqrt(2 * std::max(P - D, 0.0));
}

}  // namespace

Certificate bracket(double min_margin, double norm, double dual_norm, double frobenius_dual_norm,
                    double sum_lam, double rho, SvmNorm kind) {
  Certificate c;
  c.min_margin = min_margin;
  c.norm = norm;
  c.dual_norm = dual_norm;
  c.sum_lam = sum_lam;
  c.rho = rho;
  c.lower = norm > 0 ? min_margin / norm : 0;
  c.upper = sum_lam > 0 ? dual_norm / sum_lam : std::numeric_limits<double>::infinity();
  c.kappa = sum_lam > 0 ? rho * (sum_lam / frobenius_dual_norm) : 0;
  const double ratio = c.lower / c.upper;
  if (kind == SvmNorm::kFrobenius) {
    c.gap = c.lower > 0 ? std::max(1 - ratio * ratio, 0.0) : 1;
    if (c.lower > 0) c.cosine = std::min(ratio, 1.0);
    c.margin_error = margin_error(c.lower, c.upper, rho);
  } else {
    c.gap = c.lower > 0 ? std::max(1 - ratio, 0.0) : 1;
    c.margin_error = std::numeric_limits<double>::infinity();
  }
  return c;
}

Certificate certificate(const TokenSetsView<double>& sets, const Pairs& pairs, const double* W,
                        const double* lam, SvmNorm kind, bool ranks) {
  const int64_t M = pairs.inequality.size(), dx = sets.dx, dz = sets.dz;
  if (M == 0) return {};
  std::vector<double> values(M), projected(W, W + dx * dz), dual(dx * dz);
  pair_norms(sets, pairs.anchor, pairs.inequality, values.data());
  const double rho = *std::max_element(values.begin(), values.end());
  pair_adjoint(sets, pairs.anchor, pairs.inequality, lam, dual.data());
  if (pairs.equality.size() > 0) {
    const FinitePart finite(sets, pairs);
    projected = finite.complement(W);
    dual = finite.complement(dual.data());
  }
  pair_margins(sets, pairs.anchor, pairs.inequality, projected.data(), values.data());
  // A NaN margin must not hide behind the minimum.
  double min_margin = std::numeric_limits<double>::infinity();
  for (const double value : values) min_margin = value >= min_margin ? min_margin : value;
  const double sum_lam = std::accumulate(lam, lam + M, 0.0);
  const double frobenius_dual = norm(dual);
  const bool nuclear = kind == SvmNorm::kNuclear;
  std::vector<double> sigma_w, sigma_dual;
  if (nuclear || ranks) {
    sigma_w = singular_values(projected.data(), dx, dz);
    sigma_dual = singular_values(dual.data(), dx, dz);
  }
  auto c = bracket(min_margin,
                   nuclear ? std::accumulate(sigma_w.begin(), sigma_w.end(), 0.0) : norm(projected),
                   nuclear ? sigma_dual[0] : frobenius_dual, frobenius_dual, sum_lam, rho, kind);
  if (ranks) {
    c.rank = count_above(sigma_w, kRankCutoff);
    c.mu = count_above(sigma_dual, 1 - kRankCutoff);
  }
  return c;
}

std::pair<int64_t, int64_t> certified_ranks(const std::vector<double>& W,
                                            const std::vector<double>& dual, int64_t rows,
                                            int64_t columns) {
  return {count_above(singular_values(W.data(), rows, columns), kRankCutoff),
          count_above(singular_values(dual.data(), rows, columns), 1 - kRankCutoff)};
}

LocalOptimality local_optimality(const Pairs& pairs, const std::vector<double>& margins,
                                 const double* score, double margin_error, double tol_sv) {
  // Without a resolved support only "no rival anywhere near the margin" can be concluded.
  const bool resolved = margin_error <= tol_sv / 2;
  const double reach = 1 + tol_sv + (resolved ? 0 : 2 * margin_error);
  const auto& list = pairs.inequality;
  for (size_t q = 0; q + 1 < list.ptr.size(); ++q)
    for (int64_t j = list.ptr[q]; j < list.ptr[q + 1]; ++j)
      if (!(margins[j] > reach) && !(score[pairs.anchor[q]] > score[list.entry[j]]))
        return resolved ? LocalOptimality::kNo : LocalOptimality::kUnresolved;
  return LocalOptimality::kYes;
}

}  // namespace kktorch::csrc
