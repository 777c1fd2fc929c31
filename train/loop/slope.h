#pragma once
// Exponents of power laws from few trials: straight lines in log-log coordinates.
#include <cstdint>
#include <span>
#include <vector>

#include "train/loop/statistics.h"

namespace kktorch {

/// Mean with its 95 % Student-t interval, NaN bounds for fewer than two values.
struct MeanInterval {
  double mean, low, high;
};
MeanInterval mean_interval(std::span<const double> values);

struct LineFit {
  double slope, intercept, r_squared;
};

/// Ordinary least squares of y on x, three points or more. @throws UserError
LineFit fit_line(std::span<const double> x, std::span<const double> y);

/// log(mean over trials) on log x, and how sure the slope is.
struct PowerLaw {
  double slope, r_squared;
  Interval bootstrap;  ///< 95 % percentile interval; whole trials are drawn, jointly over x
  MeanInterval per_trial;
  int64_t trials;
  bool reliable() const { return trials >= 5; }
};

/// @param values  values[trial][i] belongs to x[i].
/// @param seed    of the bootstrap (2000 resamples).
/// @throws UserError for fewer than three x, or naming a value that is not positive.
PowerLaw fit_power_law(std::span<const double> x, const std::vector<std::vector<double>>& values,
                       uint64_t seed);

}  // namespace kktorch
