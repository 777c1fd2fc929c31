#include "train/loop/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <vector>

#include "train/common/error.h"

namespace kktorch {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

/// P(|T| <= t), the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4 with theta = atan(t /
/// sqrt(degrees)): odd:  2/pi (theta + sin cos (1 + 2/3 cos^2 + 2*4/(3*5) cos^4 + ...)),  even: sin
/// (1 + 1/2 cos^2 + 1*3/(2*4) cos^4 + ...)
double central_probability(double t, int degrees) {
  const double theta = std::atan(t / std::sqrt(degrees)), cosine = std::cos(theta);
  const bool odd = degrees % 2 == 1;
  double term = odd ? cosine : 1, sum = 0;
  for (int k = odd ? 3 : 2; k <= degrees; k += 2) {
    sum += term;
    term *= cosine * cosine * (k - 1) / k;
  }
  return odd ? (theta + std::sin(theta) * sum) * 2 / std::numbers::pi : std::sin(theta) * sum;
}

}  // namespace

double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double sample_sd(std::span<const double> values) {
  if (values.size() < 2) return kUndefined;
  const double center = mean(values);
  double sum = 0;
  for (const double value : values) sum += (value - center) * (value - center);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

double student_t_quantile(double probability, int degrees) {
  if (!(probability >= 0.5 && probability < 1) || degrees < 1)
    fail("student_t_quantile: expected 0.5 <= probability < 1 and degrees >= 1, but got {} and {}",
         probability, degrees);
  const double central = 2 * probability - 1;
  double low = 0, high = 1;
  while (central_probability(high, degrees) < central) high *= 2;
  while (high - low > 1e-13 * high) {
    const double middle = low + (high - low) / 2;
    if (middle <= low || middle >= high) break;
    (central_probability(middle, degrees) < central ? low : high) = middle;
  }
  return high;
}

Interval wilson_interval(int64_t hits, int64_t trials) {
  if (hits < 0 || trials < 1 || hits > trials)
    fail("wilson_interval: expected 0 <= hits <= trials and trials >= 1, but got {} and {}", hits,
         trials);
  constexpr double z = 1.959963984540054;  // normal quantile of 0.975
  const auto n = static_cast<double>(trials), share = static_cast<double>(hits) / n;
  const double center = (share + z * z / (2 * n)) / (1 + z * z / n);
  const double half =
      z * std::sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n);
  // It holds the share; at 0 and 1 its end is the share, which rounding must not move.
  return {std::min(share, center - half), std::max(share, center + half)};
}

PairedDifference paired_difference(std::span<const double> a, std::span<const double> b) {
  if (a.size() != b.size())
    fail("paired_difference: expected equally many values, but got {} and {}", a.size(), b.size());
  std::vector<double> difference(a.size());
  for (size_t i = 0; i < a.size(); ++i) difference[i] = a[i] - b[i];
  const double center = mean(difference);
  if (a.size() < 2) return {center, kUndefined, kUndefined};
  const double half_width = student_t_quantile(0.975, static_cast<int>(a.size()) - 1) *
                            sample_sd(difference) / std::sqrt(static_cast<double>(a.size()));
  return {center, center - half_width, center + half_width};
}

}  // namespace kktorch
