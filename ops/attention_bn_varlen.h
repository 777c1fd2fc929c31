#pragma once
// Attention-BN on sequences of different lengths, one after the other in one tensor.
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>

namespace kktorch {

/// attention_bn (ops/attention_bn.h) on every sequence by itself. Sequence b holds the queries
/// cu_seqlens_q[b] ... cu_seqlens_q[b + 1] - 1 and the keys cu_seqlens_k[b] ... likewise.
///
/// Computed on a padded batch: time and memory are those of B sequences of the greatest length.
///
/// @param query         [total_q, H, D]
/// @param key, value    [total_k, Hk, D], [total_k, Hk, Dv]
/// @param cu_seqlens_q, cu_seqlens_k  [B + 1] int32, from 0, ascending. Their values are not
///                      checked on CUDA (that would synchronise).
/// @param max_q, max_k  greatest length of a sequence's queries and keys.
/// @param is_causal     needs as many queries as keys in every sequence.
/// @return              [total_q, H, Dv]
/// @throws c10::Error   "attention_bn_varlen: expected <what>, but got <values>".
at::Tensor attention_bn_varlen(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const at::Tensor& cu_seqlens_q,
                               const at::Tensor& cu_seqlens_k, const c10::SymInt& max_q,
                               const c10::SymInt& max_k, const std::optional<at::Tensor>& beta = {},
                               double beta_value = 1.0, bool use_std = true, double eps = 1e-5,
                               bool is_causal = false, std::optional<double> scale = {},
                               bool enable_gqa = false);

}  // namespace kktorch
