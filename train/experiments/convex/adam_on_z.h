#pragma once
// Full-batch Adam on Z of the convex program (ops/convex_solver.h), as deep-learning code would
// train it: no exact zeros, no certificate of its own. For comparison with the solver.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "ops/convex_solver.h"

namespace kktorch::convex {

struct AdamSteps {
  double rate;    ///< falls to 0 along a cosine
  int64_t steps;  ///< betas 0.9, 0.999; from Z = 0
  /// Given the number of steps, F and Z before each step; false stops.
  std::function<bool(int64_t, double, const at::Tensor&)> progress;
};

/// Z [P, c, n, d] after the last step, float64. Group penalty; X, Y and options as for solve().
at::Tensor adam_on_z(const at::Tensor& X, const at::Tensor& Y, double beta,
                     const ConvexOptions& options, const AdamSteps& adam);

/// Z after one proximal step of length 1 / lip (0: estimated), which makes exact zeros, with its
/// certificate.
ConvexResult shrunk(const at::Tensor& X, const at::Tensor& Y, double beta, ConvexOptions options,
                    const at::Tensor& Z, double lip);

/// initial * (1 + cos(pi step / steps)) / 2
double cosine(double initial, int64_t step, int64_t steps);

}  // namespace kktorch::convex
