#include "train/dynamics/lanczos.h"

#include <algorithm>
#include <vector>

#include "train/loop/seed_stream.h"

namespace kktorch::dynamics {

using at::Tensor;

Curvature lanczos(const std::function<Tensor(const Tensor&)>& apply, int64_t size, uint64_t seed,
                  int64_t iterations) {
  constexpr double kBreakdown = 1e-12;
  const auto start = torch::randn({size}, generator_of(seed, "lanczos"), torch::kDouble);
  std::vector<Tensor> basis = {start / start.norm()};
  std::vector<double> diagonal, off_diagonal;
  const int64_t most = std::min(iterations, size);
  for (int64_t k = 0; k < most; ++k) {
    auto next = apply(basis.back());
    diagonal.push_back(torch::dot(next, basis.back()).item<double>());
    const auto Q = torch::stack(basis);
    for (int pass = 0; pass < 2; ++pass) next = next - torch::mv(Q.t(), torch::mv(Q, next));
    off_diagonal.push_back(next.norm().item<double>());
    if (off_diagonal.back() <= kBreakdown || k + 1 == most) break;
    basis.push_back(next / off_diagonal.back());
  }
  const auto steps = static_cast<int64_t>(diagonal.size());
  const auto T = torch::zeros({steps, steps}, torch::kDouble);
  for (int64_t k = 0; k < steps; ++k) {
    T[k][k] = diagonal[k];
    if (k + 1 < steps) T[k][k + 1] = T[k + 1][k] = off_diagonal[k];
  }
  const auto [values, vectors] = torch::linalg_eigh(T);
  const auto ritz = [&](int64_t i) -> RitzValue {
    const double last = vectors[steps - 1][i].item<double>();
    return {values[i].item<double>(), std::abs(off_diagonal.back() * last)};
  };
  return {ritz(0), ritz(steps - 1), steps};
}

}  // namespace kktorch::dynamics
