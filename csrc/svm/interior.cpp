#include "csrc/svm/interior.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "csrc/svm/dense.h"
#include "csrc/svm/normal_matrix.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kIterations = 60;
constexpr double kToBoundary = 0.995, kSmallestStep = 1e-6;

using Numbers = std::vector<double>;

double sum_of_products(const Numbers& a, const Numbers& b) {
  return dense_kernels<double>().dot(a.data(), b.data(), static_cast<int64_t>(a.size()));
}

/// The longest step up to 1 that keeps values + step changes >= 0.
double longest_step(const Numbers& values, const Numbers& changes) {
  double step = 1;
  for (size_t j = 0; j < values.size(); ++j)
    if (changes[j] < 0) step = std::min(step, -values[j] / changes[j]);
  return step;
}

class Interior {
 public:
  Interior(const Problem& problem, const Candidate& start)
      : problem_(problem), W_(start.W), lam_(start.lam), d_(problem.M) {
    // Mehrotra's start: both into the positive orthant, then in balance.
    s_ = slack(W_);
    const double lowest = *std::min_element(s_.begin(), s_.end());
    if (lowest <= 0) add(s_, -1.5 * lowest + 1e-8);
    const double product = sum_of_products(s_, lam_), sum = total(lam_);
    add(s_, sum > 0 ? product / sum / 2 : 1);
    add(lam_, product > 0 ? product / total(s_) / 2 : 1);
  }

  /// @return false if there is no step to make.
  bool step() {
    for (size_t j = 0; j < d_.size(); ++j) d_[j] = lam_[j] / s_[j];
    if (!factor_normal_matrix(problem_, d_, 1, factor_)) return false;
    const auto residual = slack(W_);  // A(W) - 1
    const double mu = mean_product(0, {}, {});
    Numbers complementarity(s_.size());
    for (size_t j = 0; j < s_.size(); ++j) complementarity[j] = s_[j] * lam_[j];
    auto [dW, ds, dlam] = direction(residual, complementarity);
    const double affine = std::min(longest_step(s_, ds), longest_step(lam_, dlam));
    const double target = mu * std::pow(mean_product(affine, ds, dlam) / mu, 3);
    for (size_t j = 0; j < s_.size(); ++j) complementarity[j] += ds[j] * dlam[j] - target;
    std::tie(dW, ds, dlam) = direction(residual, complementarity);
    const double step = kToBoundary * std::min(longest_step(s_, ds), longest_step(lam_, dlam));
    move(W_, dW, step);
    move(s_, ds, step);
    move(lam_, dlam, step);
    return std::isfinite(mu) && step > kSmallestStep;
  }

  /// Of W with lam, or of A*(lam) with lam.
  Candidate candidate() const {
    Candidate primal{W_, lam_, problem_.measure(W_, lam_, SvmNorm::kFrobenius)};
    Candidate dual{problem_.adjoint(lam_), lam_, {}};
    dual.c = problem_.measure_dual(dual.W, lam_);
    keep_better(primal, std::move(dual));
    return primal;
  }

 private:
  static void add(Numbers& values, double number) {
    for (double& value : values) value += number;
  }
  static double total(const Numbers& v) { return std::accumulate(v.begin(), v.end(), 0.0); }
  static void move(Numbers& values, const Numbers& changes, double step) {
    for (size_t i = 0; i < values.size(); ++i) values[i] += step * changes[i];
  }

  Numbers slack(const Numbers& W) const {
    auto values = problem_.margins(W);
    add(values, -1);
    return values;
  }

  double mean_product(double step, const Numbers& ds, const Numbers& dlam) const {
    double sum = 0;
    for (size_t j = 0; j < s_.size(); ++j)
      sum += step == 0 ? s_[j] * lam_[j] : (s_[j] + step * ds[j]) * (lam_[j] + step * dlam[j]);
    return sum / static_cast<double>(s_.size());
  }

  /// dW, ds, dlam with  dW - A*(dlam) = A*(lam) - W,  A(dW) - ds = s - residual,
  /// s dlam + lam ds = -complementarity.
  std::tuple<Numbers, Numbers, Numbers> direction(const Numbers& residual,
                                                  const Numbers& complementarity) const {
    const size_t M = s_.size();
    Numbers dlam(M), ds(M);  // first lam + dlam at dW = 0
    for (size_t j = 0; j < M; ++j)
      dlam[j] = lam_[j] - complementarity[j] / s_[j] - d_[j] * (residual[j] - s_[j]);
    auto dW = problem_.adjoint(dlam);
    for (size_t i = 0; i < dW.size(); ++i) dW[i] -= W_[i];
    cholesky_solve(factor_.data(), problem_.N, dW.data());
    const auto change = problem_.margins(dW);
    for (size_t j = 0; j < M; ++j) {
      ds[j] = change[j] + residual[j] - s_[j];
      dlam[j] = -complementarity[j] / s_[j] - d_[j] * ds[j];
    }
    return {std::move(dW), std::move(ds), std::move(dlam)};
  }

  const Problem& problem_;
  Numbers W_, lam_, s_, d_, factor_;
};

}  // namespace

int64_t interior_point(const Problem& problem, const SvmSettings& settings, double tol,
                       Monitor& monitor, Candidate& best) {
  Interior method(problem, best);
  for (int64_t iteration = 1; iteration <= kIterations; ++iteration) {
    const bool more = method.step();
    keep_better(best, method.candidate());
    const bool decided = best.c.gap <= tol || best.c.kappa >= settings.kappa_max;
    if (decided || !more || !monitor.report("interior", iteration, best.c)) return iteration;
  }
  return kIterations;
}

}  // namespace kktorch::csrc
