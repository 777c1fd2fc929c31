#pragma once
// What AttentionBNSH refuses, before anything is computed.
#include "models/attention_bnsh.h"

namespace kktorch::detail {

/// @throws c10::ValueError  "AttentionBNSH: expected <option>, but got <value>".
void check_options(const AttentionBNSHOptions& options);

/// What nn.MultiheadAttention documents, and what the variant asks for. Batch and length are named
/// in the layout of the caller.
/// @throws c10::Error  "AttentionBNSH: expected <what>, but got <values>".
void check_inputs(const AttentionBNSHOptions& options, const torch::Tensor& query,
                  const torch::Tensor& key, const torch::Tensor& value,
                  const torch::Tensor& padding, const torch::Tensor& attn_mask, bool is_causal);

/// Decoding serves the softmax family without convolution.
/// @throws c10::NotImplementedError  "AttentionBNSH: expected <what>, but got <value>".
void check_decodes(const AttentionBNSHOptions& options);

}  // namespace kktorch::detail
