#pragma once
// Statistics of small samples: seeds of one method, paired differences of two.
#include <cstdint>
#include <span>

namespace kktorch {

/// Arithmetic mean; NaN for no values.
double mean(std::span<const double> values);

/// Sample standard deviation, n - 1 in the denominator; NaN for fewer than two values.
double sample_sd(std::span<const double> values);

/// Quantile of Student's t with `degrees` >= 1 degrees of freedom, 0.5 <= probability < 1.
double student_t_quantile(double probability, int degrees);

struct Interval {
  double low, high;
};

/// Wilson's 95 % interval of a probability after `hits` of `trials` >= 1.
Interval wilson_interval(int64_t hits, int64_t trials);

/// Mean of a_i - b_i with its 95 % Student-t interval, NaN bounds for fewer than two pairs.
struct PairedDifference {
  double mean, low, high;
};
PairedDifference paired_difference(std::span<const double> a, std::span<const double> b);

}  // namespace kktorch
