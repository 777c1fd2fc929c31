#include "csrc/svm/pdhg.h"

#include <algorithm>
#include <cmath>

#include "csrc/svm/dense.h"
#include "csrc/svm/operators.h"
#include "csrc/svm/small_matrix.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kCheckEvery = 50, kBalancing = 500, kShortest = 100;

struct Point {
  std::vector<double> W, lam;
};

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

double clamped(double s) { return std::clamp(s, 1e-3, 1e3); }

/// An upper bound of |A| in practice: 100 steps of the power method, and 2 %.
double operator_norm(const Problem& problem) {
  std::vector<double> lam(problem.M, 1 / std::sqrt(static_cast<double>(problem.M)));
  for (int64_t j = 0; j < problem.M; ++j) lam[j] *= 1 + 0.1 * std::sin(static_cast<double>(j));
  double largest = 0;
  for (int step = 0; step < 100; ++step) {
    lam = problem.margins(problem.adjoint(lam));
    largest = norm(lam);
    for (double& value : lam) value /= largest;
  }
  return 1.02 * std::sqrt(largest);
}

class PrimalDual {
 public:
  PrimalDual(const Problem& problem, const SvmSettings& settings, Monitor& monitor, Candidate& best)
      : problem_(problem),
        settings_(settings),
        monitor_(monitor),
        best_(best),
        svd_(problem.rx, problem.rz) {
    const double margin = best.c.min_margin, size = best.c.dual_norm;
    start_.W = best.W;
    for (double& value : start_.W) value /= margin;
    const double scale =
        settings.norm == SvmNorm::kNuclear
            ? 1 / singular_values(problem.adjoint(best.lam).data(), problem.rx, problem.rz)[0]
            : best.c.sum_lam / (size * size);
    start_.lam = best.lam;
    for (double& value : start_.lam) value *= scale;
    best_.W = start_.W;
    best_.lam = start_.lam;
    best_.c = problem.measure(best_.W, best_.lam, settings.norm);
    L_ = operator_norm(problem);
  }

  int64_t run() {
    if (best_.c.gap <= settings_.tolerance()) return 0;
    int64_t iterations = 0;
    for (int attempt = 0; attempt < 2; ++attempt) {
      reset();
      while (iterations < settings_.max_iters) {
        step();
        ++iterations;
        balance(iterations);
        if (iterations % kCheckEvery != 0) continue;
        if (!std::isfinite(norm(now_.W)) || norm(now_.W) > 1e6 * norm(start_.W)) break;
        if (check(iterations)) return iterations;
      }
      if (iterations >= settings_.max_iters) break;
      L_ *= 1.2;
    }
    return iterations;
  }

 private:
  void reset() {
    now_ = anchor_ = average_ = start_;
    previous_ = start_;
    s_ = 1;
    since_ = 0;
    anchor_gap_ = 1;
  }

  void step() {
    const double tau = s_ / L_, sigma = 1 / (s_ * L_);
    auto dual = problem_.adjoint(now_.lam);
    previous_ = now_;
    for (int64_t i = 0; i < problem_.N; ++i) now_.W[i] += tau * dual[i];
    prox(now_.W, tau);
    for (int64_t i = 0; i < problem_.N; ++i) dual[i] = 2 * now_.W[i] - previous_.W[i];
    const auto margins = problem_.margins(dual);
    for (int64_t j = 0; j < problem_.M; ++j)
      now_.lam[j] = std::max(now_.lam[j] + sigma * (1 - margins[j]), 0.0);
    ++since_;
    const double share = 1.0 / static_cast<double>(since_);
    for (int64_t i = 0; i < problem_.N; ++i) average_.W[i] += share * (now_.W[i] - average_.W[i]);
    for (int64_t j = 0; j < problem_.M; ++j)
      average_.lam[j] += share * (now_.lam[j] - average_.lam[j]);
  }

  void prox(std::vector<double>& W, double tau) {
    if (settings_.norm == SvmNorm::kFrobenius) {
      for (double& value : W) value /= 1 + tau;
      return;
    }
    svd_.decompose(W.data());
    svd_.shrink(tau, W.data());
  }

  void balance(int64_t iterations) {
    if (iterations > kBalancing || iterations % 100 != 0) return;
    const double dW = distance(now_.W, previous_.W), dlam = distance(now_.lam, previous_.lam);
    if (dW > 0 && dlam > 0) s_ = clamped(std::sqrt(s_ * dW / dlam));
  }

  /// Certificates; true if the solve is over.
  bool check(int64_t iterations) {
    const auto current = problem_.measure(now_.W, now_.lam, settings_.norm);
    const auto averaged = problem_.measure(average_.W, average_.lam, settings_.norm);
    take(now_, current);
    take(average_, averaged);
    if (best_.c.gap <= settings_.tolerance() ||
        !monitor_.report("primal-dual", iterations, best_.c))
      return true;
    const double least = std::min(current.gap, averaged.gap);
    const bool restart = iterations > kBalancing && since_ >= kShortest &&
                         (least <= 0.2 * anchor_gap_ ||
                          static_cast<double>(since_) >= 0.36 * static_cast<double>(iterations));
    if (!restart) return false;
    if (averaged.gap < current.gap) now_ = average_;
    const double dW = distance(now_.W, anchor_.W), dlam = distance(now_.lam, anchor_.lam);
    if (dW > 0 && dlam > 0) s_ = clamped(std::sqrt(s_ * dW / dlam));
    anchor_ = average_ = now_;
    anchor_gap_ = least;
    since_ = 0;
    return false;
  }

  /// The best primal and the best dual point are kept separately: any pair has a bracket.
  void take(const Point& point, const Certificate& c) {
    const bool lower = c.lower > best_.c.lower, upper = c.upper < best_.c.upper;
    if (lower) best_.W = point.W;
    if (upper) best_.lam = point.lam;
    if (lower || upper) best_.c = problem_.measure(best_.W, best_.lam, settings_.norm);
  }

  const Problem& problem_;
  const SvmSettings& settings_;
  Monitor& monitor_;
  Candidate& best_;
  WarmSvd svd_;
  Point start_, now_, previous_, anchor_, average_;
  double L_ = 0, s_ = 1, anchor_gap_ = 1;
  int64_t since_ = 0;
};

}  // namespace

int64_t primal_dual(const Problem& problem, const SvmSettings& settings, Monitor& monitor,
                    Candidate& best) {
  return PrimalDual(problem, settings, monitor, best).run();
}

}  // namespace kktorch::csrc
