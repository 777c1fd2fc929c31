#include "train/dynamics/ar_data.h"

#include <cmath>

#include "train/common/error.h"

namespace kktorch::dynamics {
namespace {

int64_t window_of(const ArOptions& o) { return o.window > 0 ? o.window : o.lag + 1; }

at::Tensor positions(int64_t T, const ArOptions& o) {
  const auto t = torch::arange(T, torch::kDouble).unsqueeze(1);
  const auto p = torch::arange(o.position_pairs, torch::kDouble);
  const auto frequency = torch::pow(10000.0, -p / static_cast<double>(o.position_pairs));
  const auto channels = torch::cat({(t * frequency).sin(), (t * frequency).cos()}, 1);
  return o.position == "unit" ? channels / channels.norm(2, 1, true) : channels;
}

}  // namespace

at::Tensor ar_series(int64_t n, const ArOptions& o, at::Generator generator) {
  const int64_t T = window_of(o);
  if (!(std::abs(o.alpha) < 1)) fail("ar: expected |alpha| < 1, but got {}", o.alpha);
  if (o.lag < 1 || n < 1) fail("ar: expected lag, n >= 1, but got {} and {}", o.lag, n);
  if (T < o.lag + 1 && !o.allow_short_window)
    fail("ar: expected a window of {} tokens or more for lag {}, but got {}", o.lag + 1, o.lag, T);
  const int64_t count = o.sliding ? 1 : n, steps = o.sliding ? n + T : T + 1;
  auto series = torch::randn({count, std::max(steps, o.lag)}, generator, torch::kDouble);
  series *= std::sqrt(o.variance);
  series.narrow(1, 0, o.lag) /= std::sqrt(1 - o.alpha * o.alpha);
  for (int64_t t = o.lag; t < steps; ++t)
    series.select(1, t) += o.alpha * series.select(1, t - o.lag);
  return o.sliding ? series[0].narrow(0, 0, steps).unfold(0, T + 1, 1) : series.narrow(1, 0, steps);
}

shallow::Data ar_data(int64_t n, const ArOptions& o, at::Generator generator) {
  if (o.position != "raw" && o.position != "unit" && o.position != "none")
    fail("ar: expected position raw, unit or none, but got {}", o.position);
  const int64_t T = window_of(o);
  const auto series = ar_series(n, o, generator);
  auto X = series.narrow(1, 0, T).unsqueeze(2);
  if (o.position != "none" && o.position_pairs > 0)
    X = torch::cat({X, positions(T, o).expand({n, T, 2 * o.position_pairs})}, 2);
  return {X.contiguous(), X.select(1, T - 1).contiguous(), series.select(1, T).contiguous(), false};
}

}  // namespace kktorch::dynamics
