#include "train/dynamics/margin.h"

#include <cmath>
#include <vector>

#include "train/common/error.h"

namespace kktorch::dynamics {
namespace {

/// lambda, K~ lambda and lambda^T K~ lambda.
class Simplex {
 public:
  explicit Simplex(const at::Tensor& signed_kernel)
      : kernel_(signed_kernel.contiguous()),
        n_(kernel_.size(0)),
        weights_(n_, 0.0),
        products_(n_, 0.0) {
    int64_t first = 0;
    for (int64_t i = 1; i < n_; ++i)
      if (entry(i, i) < entry(first, first)) first = i;
    weights_[first] = 1;
    for (int64_t i = 0; i < n_; ++i) products_[i] = entry(i, first);
    square_ = entry(first, first);
  }

  double square() const { return square_; }
  const std::vector<double>& weights() const { return weights_; }
  double product(int64_t i) const { return products_[i]; }

  /// The vertex of the smallest product, and of the largest among those in use.
  int64_t toward() const {
    int64_t best = 0;
    for (int64_t i = 1; i < n_; ++i)
      if (products_[i] < products_[best]) best = i;
    return best;
  }
  int64_t away() const {
    int64_t worst = -1;
    for (int64_t i = 0; i < n_; ++i)
      if (weights_[i] > 0 && (worst < 0 || products_[i] > products_[worst])) worst = i;
    return worst;
  }

  /// lambda += step (e_i - lambda), by exact line search; step in [-weight_i / (1 - weight_i), 0]
  /// for a step away, in [0, 1] else.
  void move(int64_t i, bool is_away) {
    const double slope = products_[i] - square_;  // along e_i - lambda, half the derivative
    const double curvature = entry(i, i) - 2 * products_[i] + square_;
    const double most = is_away ? weights_[i] / (1 - weights_[i]) : 1;
    double step = curvature > 0 ? std::min(most, std::abs(slope) / curvature) : most;
    const bool drops = is_away && step == most;
    if (is_away) step = -step;
    for (int64_t j = 0; j < n_; ++j) {
      weights_[j] *= 1 - step;
      products_[j] = (1 - step) * products_[j] + step * entry(j, i);
    }
    weights_[i] = drops ? 0 : weights_[i] + step;
    square_ = 0;
    for (int64_t j = 0; j < n_; ++j) square_ += weights_[j] * products_[j];
  }

 private:
  double entry(int64_t i, int64_t j) const { return kernel_.const_data_ptr<double>()[i * n_ + j]; }

  at::Tensor kernel_;
  int64_t n_;
  std::vector<double> weights_, products_;
  double square_;
};

}  // namespace

Margin kernel_margin(const at::Tensor& kernel, const at::Tensor& y,
                     const MarginSettings& settings) {
  if (kernel.dim() != 2 || kernel.size(0) != kernel.size(1) || y.size(0) != kernel.size(0))
    fail("margin: expected a square kernel and a label for each of its rows, but got {} and {}",
         kernel.numel(), y.numel());
  Simplex simplex(kernel.to(torch::kDouble) * y.unsqueeze(0) * y.unsqueeze(1));
  Margin result{0, 0, 0, false, {}};
  for (;; ++result.iterations) {
    const int64_t toward = simplex.toward(), away = simplex.away();
    result.upper = std::sqrt(std::max(0.0, simplex.square()));
    result.lower = result.upper > 0 ? simplex.product(toward) / result.upper : 0;
    result.converged = result.upper - result.lower <= settings.gap * result.upper;
    if (result.converged || result.iterations == settings.iterations) break;
    const double gain = simplex.square() - simplex.product(toward);
    const double gain_away = simplex.product(away) - simplex.square();
    const bool step_away = gain_away > gain && simplex.weights()[away] < 1;
    simplex.move(step_away ? away : toward, step_away);
  }
  result.weights = torch::tensor(simplex.weights(), torch::kDouble);
  return result;
}

}  // namespace kktorch::dynamics
