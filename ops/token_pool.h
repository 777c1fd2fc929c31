#pragma once
// Pooling of tokens in windows, the down-sampling of Attention-SH (arXiv 2406.13781, section 3.3).
//
//     pooled_w = sum_{j in window w, valid} x_j / n_w        n_w = number of valid tokens of window
//     w
//
// The first P = num_special tokens are windows of their own; window w >= P holds the tokens
// P + (w - P) s ... P + (w - P + 1) s - 1 that exist. The last one may be short (tail "ceil") or is
// left out (tail "drop"). A window without a valid token is 0 and has n_w = 0.
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace kktorch {

/// @param input             [B, N, C] or [B, H, N, C], float16, bfloat16, float32 or float64.
/// @param window            s >= 1.
/// @param key_padding_mask  [B, N] bool, True = not valid; such tokens may hold anything.
/// @param mode              "avg", or "max" (a composition: no kernel of its own).
/// @param tail              "ceil" or "drop".
/// @param num_special       0 <= P <= N.
/// @return                  pooled [B, Nw, C] or [B, H, Nw, C] in the input dtype, and the counts
/// n_w, float32 [B, Nw], not differentiable.
/// @throws c10::Error       "token_pool: expected <what>, but got <values>".
std::tuple<at::Tensor, at::Tensor> token_pool(
    const at::Tensor& input, const c10::SymInt& window,
    const std::optional<at::Tensor>& key_padding_mask = {}, std::string_view mode = "avg",
    std::string_view tail = "ceil", const c10::SymInt& num_special = 0);

namespace detail {

/// The adjoint of the mean: a window's gradient, divided by its count, at each of its valid tokens;
/// 0 at all other tokens of the `length`. [B, length, C] or [B, H, length, C].
at::Tensor token_pool_backward(const at::Tensor& grad_pooled, const at::Tensor& count,
                               const std::optional<at::Tensor>& key_padding_mask,
                               const c10::SymInt& length, const c10::SymInt& window,
                               std::string_view tail = "ceil", const c10::SymInt& num_special = 0);

}  // namespace detail
}  // namespace kktorch
