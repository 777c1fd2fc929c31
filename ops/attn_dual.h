#pragma once
// The adjoint of the margins (ops/attn_margin.h) at the positive part of given multipliers.
//
//     lam_qt = [q_qt]+, t != alpha      M = A*(lam) = sum_q (sum_t lam_qt (x_alpha - x_t)) z_q^T
//
// For any lam >= 0, |M|_F / sum lam is an upper bound of the largest margin that there is for alpha
// (weak duality of the attention SVM, arXiv 2308.16898).
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace kktorch {

/// Functional; outputs are float64 and not differentiable; tokens with lam = 0 are not read. What
/// is checked on which device: ops/attn_margin.h.
///
/// @param x, row_ptr, tok  token sets as of attn_margin.
/// @param z      [Q, dz], floating.
/// @param alpha  int64 [Q], position of the selected token in its set.
/// @param q      [nnz], floating; e.g. the gradient of a loss with respect to the logits.
/// @return       M [dx, dz]; mass [Q] = sum_t lam_qt.
/// @throws c10::Error  "attn_dual: expected <what>, but got <values>".
std::tuple<at::Tensor, at::Tensor> attn_dual(const at::Tensor& x, const at::Tensor& z,
                                             const at::Tensor& row_ptr, const at::Tensor& alpha,
                                             const at::Tensor& q,
                                             const std::optional<at::Tensor>& tok = {});

namespace detail {

/// The same by ATen ops, on any device.
std::tuple<at::Tensor, at::Tensor> attn_dual_aten(const at::Tensor& x, const at::Tensor& z,
                                                  const at::Tensor& row_ptr,
                                                  const at::Tensor& alpha, const at::Tensor& q,
                                                  const std::optional<at::Tensor>& tok);

}  // namespace detail
}  // namespace kktorch
