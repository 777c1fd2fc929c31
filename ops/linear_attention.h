#pragma once
// Linear attention and its normalised form, Linear Attention-BN (arXiv 2406.13781, section 3).
//
//     o_i = sum_j n_j phi(q^_i) . phi(k^_j) v_j / sum_j n_j phi(q^_i) . phi(k^_j)
//     q^ = (q - beta mu) r        k^ = (k - beta mu) r        phi(x) = elu(x) + 1
//
// mu, r: mean and reciprocal deviation of the keys, as in ops/attention_bn.h. phi is not linear, so
// nothing cancels here: unlike in softmax attention, beta acts on both sides.
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

namespace kktorch {

/// Linear attention, O((M + N) D Dv).  Letters and the arguments not described here: attention_bn
/// (ops/attention_bn.h). Differentiable any number of times.
///
/// @param beta         [], [1] or [Hk]: one value per key head.
/// @param bn           false: q^ = q, k^ = k; beta, use_std and eps are ignored.
/// @param feature_map  "elu1".
/// @param is_causal    query i sees keys 0 ... i (M = N); key j is normalised by the statistics of
///                     the keys up to j, query i by those up to i. That is causal, but not the
///                     linear counterpart of the causal Attention-BN.
/// @return             [B, H, M, Dv] in the input dtype, stored as (B, M, H, Dv). A row that sees
///                     no key is 0.
/// @throws c10::Error  "linear_attention: expected <what>, but got <values>".
at::Tensor linear_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const std::optional<at::Tensor>& beta = {},
                            const std::optional<at::Tensor>& key_padding_mask = {},
                            const std::optional<at::Tensor>& key_weight = {}, bool bn = true,
                            double beta_value = 1.0, bool use_std = true, double eps = 1e-5,
                            std::string_view feature_map = "elu1", bool is_causal = false,
                            bool enable_gqa = false);

}  // namespace kktorch
