#pragma once
// The CUDA kernels of csrc/convex/rows_cuda.h on tensors. Used with KKTORCH_EXPERIMENTAL_CUDA=1:
// not yet verified on a device.
#include <ATen/core/Tensor.h>

namespace kktorch::detail {

/// w [rows, size] of v [rows, size], both contiguous.
void project_rows_cuda(const at::Tensor& v, double radius, const at::Tensor& w);

/// z of u [rows, size] and tau, float64, one for each row or one for all.
void shrink_rows_cuda(const at::Tensor& u, const at::Tensor& tau, const at::Tensor& z);

}  // namespace kktorch::detail
