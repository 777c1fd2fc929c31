#pragma once
// The rows of rows.h on CUDA: a warp is a row, and a row is read again for every Newton step.
// Sums and norms are float64 for every type. Torch-free; not yet verified on a device.
#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/common/types.h"

namespace kktorch::csrc {

/// w = projection of v [rows, size], both contiguous; -inf is a masked entry, a row with NaN, with
/// +inf, or of -inf alone becomes NaN.
template <typename T>
cudaError_t launch_simplex_project(const T* v, int64_t rows, int64_t size, double radius, T* w,
                                   cudaStream_t stream);

/// z = u shrunk by tau [rows / tau_stride], one for each row or one for all (tau_stride = 0).
template <typename T>
cudaError_t launch_group_shrink(const T* u, const double* tau, int64_t tau_stride, int64_t rows,
                                int64_t size, T* z, cudaStream_t stream);

}  // namespace kktorch::csrc
