#pragma once
// The independently recurrent network of the comparison with shallow transformers (arXiv
// 2402.12241), its gradients by backpropagation through time, and the growth of its Jacobian.
//
//     h_it = sigma(w_i h_i(t-1) + u_i^T x_t)      h_i0 = 0      f = m^(-1/2) sum_i c_i h_iT
//     e_it = dh_it / dw_i = sigma'(z_it) (h_i(t-1) + w_i e_i(t-1))
//
// X [n, T, d], y [n], w [m], u [m, d], c [m]: float32 or float64. act as in ops/shk.h.
#include <ATen/core/Tensor.h>

#include <string_view>
#include <tuple>

namespace kktorch {

/// f [n]: a composition of differentiable ATen operations.
/// @throws c10::Error  "indrnn: expected <what>, but got <values>", as all of these.
at::Tensor indrnn_forward(const at::Tensor& X, const at::Tensor& w, const at::Tensor& u,
                          const at::Tensor& c, std::string_view act = "tanh");

/// Mean squared error (float64), f, and the gradients in w, u and c; not differentiable.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> indrnn_loss_grad(
    const at::Tensor& X, const at::Tensor& y, const at::Tensor& w, const at::Tensor& u,
    const at::Tensor& c, std::string_view act = "tanh");

/// e_iT [n, m]; df/dw_i = m^(-1/2) c_i e_iT. Memory does not grow with T.
at::Tensor indrnn_jac(const at::Tensor& X, const at::Tensor& w, const at::Tensor& u,
                      std::string_view act = "tanh");

}  // namespace kktorch
