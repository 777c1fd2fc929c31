#pragma once
// Autoregressive sequences with one lag, the data of the comparison with recurrent networks:
//
//     X_t = alpha X_(t - L) + eps_t        eps_t ~ N(0, variance)        target X_(T + 1)
//
// Every sample is a series of its own with a stationary start, or a window that slides over one.
#include <torch/torch.h>

#include <cstdint>
#include <string>

#include "train/dynamics/shallow.h"

namespace kktorch::dynamics {

struct ArOptions {
  int64_t lag = 1;
  int64_t window = 0;  ///< T; 0: lag + 1
  double alpha = 0.9, variance = 0.1;
  int64_t position_pairs = 8;       ///< channels sin, cos of t 10000^(-p / pairs)
  std::string position = "raw";     ///< "raw", "unit" (divided by their norm) or "none"
  bool sliding = false;             ///< sample i is steps i ... i + T of one series
  bool allow_short_window = false;  ///< a window that does not hold the lag
};

/// Series of one sample each, or windows of one series, [n, T + 1]. @throws UserError for |alpha|
/// >= 1, lag < 1, or a window below lag + 1.
at::Tensor ar_series(int64_t n, const ArOptions& options, at::Generator generator);

/// Windows with position channels behind the value, query = last token, target = next value.
/// Unbounded: norms of tokens exceed 1.
shallow::Data ar_data(int64_t n, const ArOptions& options, at::Generator generator);

}  // namespace kktorch::dynamics
