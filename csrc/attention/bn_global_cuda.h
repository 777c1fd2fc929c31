#pragma once
// Attention-BN with global statistics on CUDA: fused kernels before and after the softmax
// attention. Formulas and letters: bn_global.h; blocks of rows, block moments and column sums as
// there, merged in the same fixed order (no atomics). Torch-free; not yet verified on a device.
#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/attention/bn_launch.h"
#include "csrc/common/types.h"

namespace kktorch::csrc {

/// [B, heads, L, D] with contiguous channels.
template <typename T>
struct DeviceHeads {
  T* data;
  int64_t batch_stride, head_stride, row_stride;
};

/// Everything both passes need; pointers to device memory.
template <typename T>
struct DeviceProblem {
  using A = acc_t<T>;
  BnShape shape;
  const A* weight;        // [B, N], or null where every key weighs 1
  const A* total_weight;  // [B], sum_j n_j: for the backward pass, and null with `weight`
  const A* beta;          // [H]
  A* statistics;          // [B, Hk, 3, D]: x0, m, r
  A* workspace;           // bn_workspace_size(shape) values
  A eps;
  bool use_std;
};

/// Statistics (with `measure`; otherwise they are read), c^ and q^.
template <typename T>
cudaError_t launch_bn_forward(const DeviceProblem<T>& problem, bool measure,
                              DeviceHeads<const T> query, DeviceHeads<const T> key,
                              DeviceHeads<T> q_hat, DeviceHeads<T> c_hat, cudaStream_t stream);

/// Turns dq^, dc^ into dq, dk in place; grad_beta: [B, H].
template <typename T>
cudaError_t launch_bn_backward(const DeviceProblem<T>& problem, DeviceHeads<const T> q_hat,
                               DeviceHeads<const T> c_hat, DeviceHeads<T> grad_query,
                               DeviceHeads<T> grad_key, acc_t<T>* grad_beta, cudaStream_t stream);

}  // namespace kktorch::csrc
