#pragma once
// Attention-SH: every head attends to the tokens pooled at a scale of its own (arXiv 2406.13781,
// section 3.3); with bn, Attention-BN on the pooled keys of each head (Attention-BN+SH).
//
//     o_i = sum_w softmax_w(scale q_i . k_w) v_w       k_w, v_w: means of windows of s_h tokens
//
// Causal: query p sees, pooled, the windows that end before its own begins, and, token by token,
// the special tokens and those of its own window up to p.
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string_view>

namespace kktorch {

/// Attention-SH.  Letters, dtypes and the arguments not described here: attention_bn
/// (ops/attention_bn.h).
///
/// @param query             [B, H, M, D]
/// @param key, value        [B, Hk, N, D], [B, Hk, N, Dv]: tokens, pooled here.
/// @param scales            window s of every key head, 1 or Hk numbers >= 1.
/// @param attn_mask         on tokens; a window is visible where all its valid tokens are. Floating
///                          masks only where every scale is 1.
/// @param bn                Attention-BN on the pooled keys; causal: with the statistics of the
///                          tokens up to the query. false: beta, use_std and eps are ignored.
/// @param count_weighting   a window weighs as much as it has valid tokens, not 1.
/// @param tail, num_special see ops/token_pool.h.
/// @return                  [B, H, M, Dv] in the input dtype. A row that sees no key is 0.
/// @throws c10::Error       "attention_sh: expected <what>, but got <values>".
at::Tensor attention_sh(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        at::IntArrayRef scales, const std::optional<at::Tensor>& beta = {},
                        const std::optional<at::Tensor>& key_padding_mask = {},
                        const std::optional<at::Tensor>& attn_mask = {}, bool bn = false,
                        bool count_weighting = false, std::string_view tail = "ceil",
                        const c10::SymInt& num_special = 0, double beta_value = 1.0,
                        bool use_std = true, double eps = 1e-5, bool is_causal = false,
                        std::optional<c10::SymInt> query_offset = {}, double dropout_p = 0.0,
                        std::optional<double> scale = {}, bool enable_gqa = false);

/// The executable specification of attention_sh: same arguments and result, a composition of
/// differentiable ATen ops. literal: see attention_bn_ref.
at::Tensor attention_sh_ref(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            at::IntArrayRef scales, const std::optional<at::Tensor>& beta = {},
                            const std::optional<at::Tensor>& key_padding_mask = {},
                            const std::optional<at::Tensor>& attn_mask = {}, bool bn = false,
                            bool count_weighting = false, std::string_view tail = "ceil",
                            const c10::SymInt& num_special = 0, double beta_value = 1.0,
                            bool use_std = true, double eps = 1e-5, bool is_causal = false,
                            std::optional<c10::SymInt> query_offset = {}, double dropout_p = 0.0,
                            std::optional<double> scale = {}, bool enable_gqa = false,
                            bool literal = false);

}  // namespace kktorch
