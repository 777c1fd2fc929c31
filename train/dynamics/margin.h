#pragma once
// Hard margin of a kernel: gamma^2 = min over lambda in the simplex of lambda^T K~ lambda with
// K~ = K o y y^T, by Frank-Wolfe with away steps (Guelat & Marcotte 1986).
//
// Certificate at lambda: min_i (K~ lambda)_i / sqrt(lambda^T K~ lambda) <= gamma <= sqrt(lambda^T
// K~ lambda).
#include <torch/torch.h>

#include <cstdint>

namespace kktorch::dynamics {

struct MarginSettings {
  double gap = 1e-3;  ///< relative, of the certificate
  int64_t iterations = 100000;
};

struct Margin {
  double lower, upper;  ///< lower <= 0: not separable as far as is known
  int64_t iterations;
  bool converged;
  at::Tensor weights;  ///< lambda [N]
};

/// @param kernel  [N, N], float64, symmetric; y [N] of -1 and +1.
Margin kernel_margin(const at::Tensor& kernel, const at::Tensor& y, const MarginSettings& = {});

}  // namespace kktorch::dynamics
