#include "train/loop/slope.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "train/common/error.h"
#include "train/loop/seed_stream.h"

namespace kktorch {
namespace {

constexpr int64_t kResamples = 2000;

std::vector<double> logarithms(std::span<const double> values) {
  std::vector<double> logs;
  for (const double value : values) {
    if (!(value > 0) || !std::isfinite(value))
      fail("power law: expected positive numbers, but got {}", value);
    logs.push_back(std::log(value));
  }
  return logs;
}

/// Log of the mean over the chosen trials.
std::vector<double> log_means(const std::vector<std::vector<double>>& values,
                              const std::vector<size_t>& trials) {
  std::vector<double> means(values.front().size());
  for (size_t i = 0; i < means.size(); ++i) {
    for (const auto trial : trials) means[i] += values[trial][i];
    means[i] /= static_cast<double>(trials.size());
  }
  return logarithms(means);
}

}  // namespace

MeanInterval mean_interval(std::span<const double> values) {
  const std::vector<double> zeros(values.size());
  const auto [center, low, high] = paired_difference(values, zeros);
  return {center, low, high};
}

LineFit fit_line(std::span<const double> x, std::span<const double> y) {
  if (x.size() != y.size() || x.size() < 3)
    fail("fit: expected three points or more, but got {} and {} coordinates", x.size(), y.size());
  const double mean_x = mean(x), mean_y = mean(y);
  double xx = 0, xy = 0, yy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - mean_x) * (x[i] - mean_x);
    xy += (x[i] - mean_x) * (y[i] - mean_y);
    yy += (y[i] - mean_y) * (y[i] - mean_y);
  }
  const double slope = xy / xx;
  return {slope, mean_y - slope * mean_x, yy > 0 ? xy * xy / (xx * yy) : 1};
}

PowerLaw fit_power_law(std::span<const double> x, const std::vector<std::vector<double>>& values,
                       uint64_t seed) {
  const auto log_x = logarithms(x);
  std::vector<double> slopes;
  for (const auto& trial : values) slopes.push_back(fit_line(log_x, logarithms(trial)).slope);

  std::vector<size_t> trials(values.size());
  for (size_t i = 0; i < trials.size(); ++i) trials[i] = i;
  const auto fit = fit_line(log_x, log_means(values, trials));

  SeedStream stream(seed, "bootstrap");
  std::vector<double> resampled(kResamples);
  for (auto& slope : resampled) {
    for (auto& trial : trials) trial = stream.below(values.size());
    slope = fit_line(log_x, log_means(values, trials)).slope;
  }
  std::sort(resampled.begin(), resampled.end());
  const auto quantile = [&](double p) {
    return resampled[static_cast<size_t>(std::lround(p * (kResamples - 1)))];
  };
  return {.slope = fit.slope,
          .r_squared = fit.r_squared,
          .bootstrap = {quantile(0.025), quantile(0.975)},
          .per_trial = mean_interval(slopes),
          .trials = static_cast<int64_t>(values.size())};
}

}  // namespace kktorch
