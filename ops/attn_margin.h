#pragma once
// Margins of the logits of attention, for every query one read of the tokens that it sees.
//
//     L_t = x_t.y_q      m_t = L_alpha - L_t      s = softmax(scale L)
//
// With y_q = W z_q these are the margins A(W) of the attention SVM (arXiv 2308.16898), and
// min m / |W|_F is a lower bound of the largest margin that there is for alpha; ops/attn_dual.h
// gives the upper one.
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace kktorch {

using MarginTensors =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

/// Functional; outputs are float64 or int64, and not differentiable. A query with a logit that is
/// not finite gives NaN. Sets, `tok` and `alpha` are checked on the CPU; on CUDA, where a
/// composition of ATen ops computes, only their shapes are: no synchronisation.
///
/// @param x        tokens [N, dx], float16, bfloat16, float32 or float64; arithmetic is float64.
/// @param y        [Q, dx], floating; y_q = W z_q.
/// @param row_ptr  int64 [Q + 1]: query q sees the entries row_ptr[q] ... row_ptr[q + 1] - 1, at
///                 least one.
/// @param tok      int64 [nnz], the row of x that an entry is; none: nnz = N, entry k is row k.
/// @param alpha    int64 [Q], position of the selected token in its set; none: the largest logit,
///                 ties: the first.
/// @param scale    > 0, of the softmax; margins are those of L.
/// @return  margin [nnz]; alpha [Q]; qmin [Q], the smallest margin of the other tokens, +inf
///          without any; qarg [Q], its position or -1; smax [Q], the largest probability;
///          entropy [Q] in nats; xmax [Q], the largest |x_t|.
/// @throws c10::Error  "attn_margin: expected <what>, but got <values>".
MarginTensors attn_margin(const at::Tensor& x, const at::Tensor& y, const at::Tensor& row_ptr,
                          const std::optional<at::Tensor>& tok = {},
                          const std::optional<at::Tensor>& alpha = {}, double scale = 1.0);

namespace detail {

/// The same by ATen ops, on any device.
MarginTensors attn_margin_aten(const at::Tensor& x, const at::Tensor& y, const at::Tensor& row_ptr,
                               const std::optional<at::Tensor>& tok,
                               const std::optional<at::Tensor>& alpha, double scale);

}  // namespace detail
}  // namespace kktorch
