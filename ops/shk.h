#pragma once
// A shallow transformer of m heads, one neuron each, and its gradients in closed form (arXiv
// 2601.16514, section 2).
//
//     p_i = softmax_t(x_t^T W_i q)      a_i = sum_t p_it x_t      s_i = U_i^T a_i
//     f = m^(-1/2) sum_i c_i sigma(s_i)
//
//     df/dc_i = m^(-1/2) sigma(s_i)            df/dU_i = m^(-1/2) c_i sigma'(s_i) a_i
//     df/dW_i = m^(-1/2) c_i sigma'(s_i) (M_i U_i) q^T
//     M_i U_i = sum_t p_it (x_t^T U_i) x_t - s_i a_i
//
// X [n, T, d], q [n, d], y [n], W [m, d, d], U [m, d], c [m]: float32 or float64, one dtype and
// device, any strides. X, q and y are not differentiable. act: "tanh", "sigmoid" or "identity".
// chunk_bytes: what the samples that are worked on together may take (at least one sample).
#include <ATen/core/Tensor.h>

#include <string_view>
#include <tuple>

namespace kktorch {

constexpr int64_t kDefaultChunkBytes = int64_t{256} << 20;

/// f [n]. Differentiable once in W, U and c; shk_output_ref any number of times.
/// @throws c10::Error  "shk_output: expected <what>, but got <values>", as all of these.
at::Tensor shk_output(const at::Tensor& X, const at::Tensor& q, const at::Tensor& W,
                      const at::Tensor& U, const at::Tensor& c, std::string_view act = "tanh",
                      int64_t chunk_bytes = kDefaultChunkBytes);

/// The executable specification of shk_output: a composition of ATen operations.
at::Tensor shk_output_ref(const at::Tensor& X, const at::Tensor& q, const at::Tensor& W,
                          const at::Tensor& U, const at::Tensor& c, std::string_view act = "tanh");

/// Mean squared error (1/n) sum_j (f_j - y_j)^2 (float64), f, and the gradients in W, U and c.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> shk_loss_grad(
    const at::Tensor& X, const at::Tensor& q, const at::Tensor& y, const at::Tensor& W,
    const at::Tensor& U, const at::Tensor& c, std::string_view act = "tanh",
    int64_t chunk_bytes = kDefaultChunkBytes);

/// Features of every head: h = sigma(s) [n, m]; B = sigma'(s) a and G1 = sigma'(s) M U [n, m, d].
std::tuple<at::Tensor, at::Tensor, at::Tensor> shk_features(const at::Tensor& X,
                                                            const at::Tensor& q,
                                                            const at::Tensor& W,
                                                            const at::Tensor& U,
                                                            std::string_view act = "tanh");

/// Bytes that shk_loss_grad allocates on the CPU besides its results and contiguous copies of its
/// arguments.
int64_t shk_workspace_bytes(const at::Tensor& X, const at::Tensor& q, const at::Tensor& W,
                            const at::Tensor& U, int64_t chunk_bytes = kDefaultChunkBytes);

namespace detail {

/// sum_j r_j grad f_j in W, U and c.
std::tuple<at::Tensor, at::Tensor, at::Tensor> shk_output_backward(
    const at::Tensor& r, const at::Tensor& X, const at::Tensor& q, const at::Tensor& W,
    const at::Tensor& U, const at::Tensor& c, std::string_view act = "tanh",
    int64_t chunk_bytes = kDefaultChunkBytes);

}  // namespace detail
}  // namespace kktorch
