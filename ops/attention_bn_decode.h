#pragma once
// Attention-BN with prefix statistics, one chunk of tokens at a time, on a cache of raw keys.
//
//     after T new tokens:  cache += (k, v),   (n, mean, m2) += k   (Welford),   and for new token t
//     q~_t = (q_t - beta mu_t) a_t,           o_t = sum_{j <= t} softmax_j(scale q~_t . k_j) v_j
//
// Keys are never normalised again: all of Attention-BN sits in the query. Inference only.
#include <ATen/core/Tensor.h>

#include <optional>

namespace kktorch {

/// C capacity of the cache, T >= 1 new tokens of every sample; other letters: ops/attention_bn.h.
///
/// @param query      [B, H, T, D]
/// @param key_new    [B, Hk, T, D], value_new [B, Hk, T, Dv]
/// @param key_cache  [B, Hk, C, D], value_cache [B, Hk, C, Dv], dtype of query; written.
/// @param length     [B] int64, tokens of each sample in the cache; advanced by T.
/// @param mean, m2   [B, Hk, D] float64 for float64 inputs, else float32: mean of the keys, and sum
///                   of their squared deviations; updated.
/// @return           [B, H, T, Dv]
/// @throws c10::Error "attention_bn_decode: expected <what>, but got <values>". On CUDA the
/// capacity
///                   is not checked (that would synchronise): the caller tracks lengths.
at::Tensor attention_bn_decode(const at::Tensor& query, const at::Tensor& key_new,
                               const at::Tensor& value_new, at::Tensor& key_cache,
                               at::Tensor& value_cache, at::Tensor& length, at::Tensor& mean,
                               at::Tensor& m2, const std::optional<at::Tensor>& beta = {},
                               double beta_value = 1.0, bool use_std = true, double eps = 1e-5,
                               std::optional<double> scale = {}, bool enable_gqa = false);

}  // namespace kktorch
