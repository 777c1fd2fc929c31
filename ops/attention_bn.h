#pragma once
// Attention-BN: softmax attention whose keys are normalised over the sequence (arXiv 2406.13781,
// section 3.2).
//
//     mu_d = mean_j k_jd        sigma2_d = mean_j (k_jd - mu_d)^2        a_d = 1 / (sigma2_d + eps)
//     L_ij = scale * sum_d a_d (q_id - beta mu_d) (k_jd - beta mu_d)
//     o_i  = sum_j softmax_j(L_ij) v_j
//
// One (sample, head) is one sample of keys: no batch statistics, no running averages. It is
// computed folded, as softmax attention of ((q - beta mu) * a) on centred keys, which is the same
// function (docs/attention_bn.md).
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace kktorch {

/// Attention-BN.  B batch, H query heads, Hk key/value heads, M queries, N keys, D width, Dv value
/// width.
///
/// @param query            [B, H, M, D]   float16, bfloat16, float32 or float64, any strides.
/// @param key              [B, Hk, N, D]  dtype and device of query.
/// @param value            [B, Hk, N, Dv] dtype and device of query.
/// @param beta             re-centring strength, [], [1] or [H], any floating dtype,
/// differentiable. None: beta_value.
/// @param key_padding_mask [B, N] bool, True = ignore the key. Padded positions may hold anything,
/// NaN included.
/// @param attn_mask        bool (True = may attend) or floating (added to the scaled logits), [M,
/// N] or
///                         [B|1, H|1, M, N]. A floating mask that requires grad takes the
///                         materialising path.
/// @param key_weight       [B, N] floating, >= 0: a key of weight 3 counts like three equal keys.
/// Not differentiable.
/// @param use_std          divide by the standard deviation; false: a = 1.
/// @param eps              variance floor, >= 0.
/// @param stats            keys that enter mu and sigma: "global" (all valid keys), "prefix" (those
/// up to the query's
///                         position; needs is_causal), "support" (those the row may attend;
///                         materialising path) or "auto" (prefix if is_causal, else global).
/// @param is_causal        query i sees keys at positions <= query_offset + i.
/// @param query_offset     position of query 0; may be omitted (0) only if M = N or not is_causal.
/// @param dropout_p        dropout on the attention probabilities (materialising path on CPU).
/// @param scale            default 1/sqrt(D).
/// @param enable_gqa       allow H to be a multiple of Hk.
/// @return                 [B, H, M, Dv] in the input dtype, stored as (B, M, H, Dv). A row that
/// sees no key is 0.
/// @throws c10::Error      "attention_bn: expected <what>, but got <values>".
at::Tensor attention_bn(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const std::optional<at::Tensor>& beta = {},
                        const std::optional<at::Tensor>& key_padding_mask = {},
                        const std::optional<at::Tensor>& attn_mask = {},
                        const std::optional<at::Tensor>& key_weight = {}, double beta_value = 1.0,
                        bool use_std = true, double eps = 1e-5, std::string_view stats = "auto",
                        bool is_causal = false, std::optional<c10::SymInt> query_offset = {},
                        double dropout_p = 0.0, std::optional<double> scale = {},
                        bool enable_gqa = false);

/// The executable specification of attention_bn: a composition of differentiable ATen operations
/// that materialises the M x N probabilities, and the path of everything that needs them. `literal`
/// evaluates the formula above as it stands instead of its folded form. Supports double backward,
/// forward-mode AD and vmap.
at::Tensor attention_bn_ref(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const std::optional<at::Tensor>& beta = {},
                            const std::optional<at::Tensor>& key_padding_mask = {},
                            const std::optional<at::Tensor>& attn_mask = {},
                            const std::optional<at::Tensor>& key_weight = {},
                            double beta_value = 1.0, bool use_std = true, double eps = 1e-5,
                            std::string_view stats = "auto", bool is_causal = false,
                            std::optional<c10::SymInt> query_offset = {}, double dropout_p = 0.0,
                            std::optional<double> scale = {}, bool enable_gqa = false,
                            bool literal = false);

}  // namespace kktorch
