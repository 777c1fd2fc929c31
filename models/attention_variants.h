#pragma once
// The attention of every variant of AttentionBNSH, between its projections.
//
// Pooling by averages commutes with a projection, so heads that pool can do so before their key and
// value projections, which then cost as much less as there are fewer windows than tokens
// (attend_pooled_inputs). What needs every token projected, masks, causality, a convolution, pools
// afterwards (attend).
#include "models/attention_bnsh.h"

namespace kktorch::detail {

struct AttentionMasks {   // in the convention of the ops
  torch::Tensor padding;  ///< [B, S] bool, True = ignore; may be undefined
  torch::Tensor
      attention;  ///< [L, S] or [B, H, L, S], True = may attend, or additive, or undefined
  bool is_causal = false;
};

/// The heads' outputs [B, H, L, Dv] from query, key and value heads [B, heads, length, width].
torch::Tensor attend(const AttentionBNSHImpl& layer, const torch::Tensor& query,
                     const torch::Tensor& key, const torch::Tensor& value,
                     const AttentionMasks& masks, double dropout);

/// The same from the layer's inputs [B, length, width]; not causal, no attention mask.
torch::Tensor attend_pooled_inputs(const AttentionBNSHImpl& layer, const torch::Tensor& query,
                                   const torch::Tensor& key, const torch::Tensor& value,
                                   const torch::Tensor& padding, double dropout);

/// [B, length, heads width] to [B, heads, length, width].
torch::Tensor split_heads(const torch::Tensor& t, int64_t width);

/// None for an undefined tensor, as the ops want it.
inline std::optional<torch::Tensor> optional(const torch::Tensor& t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}

}  // namespace kktorch::detail
