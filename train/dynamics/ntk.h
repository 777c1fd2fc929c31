#pragma once
// Empirical neural tangent kernels: blocks by group of parameters, and what is reported of them.
#include <torch/torch.h>

#include <vector>

namespace kktorch::dynamics {

/// Block kernels [N, N] of one model, float64; their sum is the kernel.
struct Kernels {
  std::vector<at::Tensor> blocks;
  at::Tensor total() const;
};

/// <Kc, y y^T> / (||Kc|| ||y||^2) with the kernel centred on both sides.
double alignment(const at::Tensor& kernel, const at::Tensor& y);

/// ||K - K0||_F / ||K0||_F, and the absolute norm where K0 = 0.
double drift(const at::Tensor& kernel, const at::Tensor& start);

struct Spectrum {
  double smallest, largest, effective_rank;  ///< tr K / lambda_max
};
Spectrum spectrum(const at::Tensor& kernel);

}  // namespace kktorch::dynamics
