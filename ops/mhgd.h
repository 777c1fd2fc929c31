#pragma once
// Single-layer multi-head attention with merged queries and keys, and its gradients in closed form
// (arXiv 2310.12680, section 2).
//
//     Phi = H^(-1/2) sum_h <U_h, softmax_rows(X W_h X^T) X>
//
//     dPhi/dU_h = H^(-1/2) Z_h          row t of Z_h: xbar_t = sum_s p_ts x_s
//     dPhi/dW_h = H^(-1/2) sum_t x_t (Cov_ht u_ht)^T
//     Cov_ht u = sum_s p_ts (x_s^T u - xbar_t^T u) x_s
//
// X [n, T, d], y [n] of -1 and +1, W [H, d, d], U [H, T, d]: float32 or float64, one dtype and
// device, any strides. X and y are not differentiable. chunk_bytes: what the samples that are
// worked on together may take (at least one sample).
#include <ATen/core/Tensor.h>

#include <tuple>

#include "ops/shk.h"

namespace kktorch {

/// Phi [n]. Differentiable once in W and U; mhgd_logits_ref any number of times.
/// @throws c10::Error  "mhgd_logits: expected <what>, but got <values>", as all of these.
at::Tensor mhgd_logits(const at::Tensor& X, const at::Tensor& W, const at::Tensor& U,
                       int64_t chunk_bytes = kDefaultChunkBytes);

/// The executable specification of mhgd_logits: a composition of ATen operations.
at::Tensor mhgd_logits_ref(const at::Tensor& X, const at::Tensor& W, const at::Tensor& U);

/// Mean of log(1 + exp(-y Phi)) (float64), Phi, and the gradients in W and U.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> mhgd_loss_grad(
    const at::Tensor& X, const at::Tensor& y, const at::Tensor& W, const at::Tensor& U,
    int64_t chunk_bytes = kDefaultChunkBytes);

/// Z and G [n, T, H, d]; G[n, t, h] = Cov_ht u_ht.
std::tuple<at::Tensor, at::Tensor> mhgd_features(const at::Tensor& X, const at::Tensor& W,
                                                 const at::Tensor& U);

/// <grad Phi, (dW, dU)> [n] from the features.
at::Tensor mhgd_jvp(const at::Tensor& X, const at::Tensor& Z, const at::Tensor& G,
                    const at::Tensor& dW, const at::Tensor& dU);

/// Bytes that mhgd_loss_grad allocates on the CPU besides its results and contiguous copies of its
/// arguments.
int64_t mhgd_workspace_bytes(const at::Tensor& X, const at::Tensor& W, const at::Tensor& U,
                             int64_t chunk_bytes = kDefaultChunkBytes);

namespace detail {

/// sum_i r_i grad Phi_i in W and U.
std::tuple<at::Tensor, at::Tensor> mhgd_logits_backward(const at::Tensor& r, const at::Tensor& X,
                                                        const at::Tensor& W, const at::Tensor& U,
                                                        int64_t chunk_bytes = kDefaultChunkBytes);

}  // namespace detail
}  // namespace kktorch
