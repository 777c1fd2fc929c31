#include "models/attention_variants.h"

#include <limits>

#include "models/head_groups.h"
#include "ops/attention_bn.h"
#include "ops/attention_sh.h"
#include "ops/linear_attention.h"
#include "ops/token_pool.h"

namespace kktorch::detail {
namespace {

using torch::Tensor;

/// `mask` (bool, True = visible, or additive, or undefined) restricted to where `visible` is true.
Tensor restrict_to(const Tensor& mask, const Tensor& visible) {
  if (!mask.defined()) return visible;
  if (mask.scalar_type() == torch::kBool) return mask.logical_and(visible);
  return torch::where(visible, mask, -std::numeric_limits<double>::infinity());
}

/// scaled_dot_product_attention multiplies padded keys and values by 0: select, they may be NaN.
/// It takes is_causal only without a mask.
Tensor softmax_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                         const AttentionMasks& masks, double dropout, bool gqa) {
  auto k = key, v = value, mask = masks.attention;
  if (masks.padding.defined()) {
    const auto padded = masks.padding.unsqueeze(1).unsqueeze(-1);
    k = k.masked_fill(padded, 0);
    v = v.masked_fill(padded, 0);
    mask = restrict_to(mask, masks.padding.logical_not().unsqueeze(1).unsqueeze(1));
  }
  if (masks.is_causal && mask.defined()) {
    const auto visible =
        torch::ones({query.size(2), key.size(2)}, mask.options().dtype(torch::kBool));
    mask = restrict_to(mask, visible.tril());
  }
  return at::scaled_dot_product_attention(query, k, v, optional(mask), dropout,
                                          masks.is_causal && !mask.defined(), /*scale=*/{}, gqa);
}

/// Attention to tokens or windows of weight `key_weight`. Attention-BN that neither re-centres nor
/// divides is softmax attention.
Tensor attend_to_keys(const AttentionBNSHImpl& layer, const Tensor& query, const Tensor& key,
                      const Tensor& value, const Tensor& beta, const Tensor& key_weight,
                      const AttentionMasks& masks, double dropout) {
  const auto& o = layer.options;
  const bool bn = o.normalises();
  if (o.is_linear()) {
    return linear_attention(query, key, value, optional(beta), optional(masks.padding),
                            optional(key_weight), bn, layer.beta_value(), o.use_std, o.eps,
                            /*feature_map=*/"elu1", masks.is_causal, layer.is_gqa());
  }
  return attention_bn(query, key, value, optional(beta), optional(masks.padding),
                      optional(masks.attention), optional(key_weight), layer.beta_value(),
                      bn && o.use_std, o.eps, /*stats=*/"auto", masks.is_causal,
                      /*query_offset=*/{}, dropout, /*scale=*/{}, layer.is_gqa());
}

struct Pooled {
  Tensor tokens;
  Tensor padding;  ///< [B, windows] bool, True = no valid token; may be undefined
  Tensor weight;   ///< [B, windows]; may be undefined: 1 each
};

Pooled pool(const AttentionBNSHImpl& layer, const Tensor& tokens, int64_t scale,
            const Tensor& padding) {
  if (scale == 1) return {tokens, padding, {}};
  const auto& o = layer.options;
  const auto [windows, counts] =
      token_pool(tokens, scale, optional(padding), "avg", o.tail, o.num_special);
  return {windows, padding.defined() ? counts == 0 : Tensor(),
          o.count_weighting ? counts : Tensor()};
}

/// The query heads that share the key heads `heads`, on these.
Tensor attend_group(const AttentionBNSHImpl& layer, const Tensor& query,
                    const std::vector<int64_t>& heads, const Pooled& key, const Tensor& value,
                    double dropout) {
  auto beta = layer.beta;
  if (beta.defined() && beta.dim() == 1) {
    beta = take_heads(beta, 0, heads, layer.options.is_linear() ? 1 : layer.queries_per_key());
  }
  return attend_to_keys(layer, take_heads(query, 1, heads, layer.queries_per_key()), key.tokens,
                        value, beta, key.weight, {.padding = key.padding, .attention = {}},
                        dropout);
}

Tensor attend_pooled_heads(const AttentionBNSHImpl& layer, const Tensor& query, const Tensor& key,
                           const Tensor& value, const Tensor& padding) {
  const auto groups = group_heads(layer.scales());
  std::vector<Tensor> parts;
  for (const auto& [scale, heads] : groups) {
    const auto keys = pool(layer, take_heads(key, 1, heads), scale, padding);
    const auto values = pool(layer, take_heads(value, 1, heads), scale, padding).tokens;
    parts.push_back(attend_group(layer, query, heads, keys, values, /*dropout=*/0.0));
  }
  return merge_heads(parts, groups, layer.queries_per_key());
}

/// Key (1) or value (2) heads `heads` of tokens [B, length, width].
Tensor project_heads(const AttentionBNSHImpl& layer, const Tensor& tokens, size_t which,
                     const std::vector<int64_t>& heads) {
  const auto width = which == 1 ? layer.head_dim() : layer.value_head_dim();
  auto [weight, bias] = layer.projection(which);
  if (bias.defined()) bias = take_heads(bias, 0, heads, width);
  return split_heads(torch::linear(tokens, take_heads(weight, 0, heads, width), optional(bias)),
                     width);
}

}  // namespace

Tensor split_heads(const Tensor& t, int64_t width) {
  return t.unflatten(-1, {t.size(-1) / width, width}).transpose(1, 2);
}

Tensor attend(const AttentionBNSHImpl& layer, const Tensor& query, const Tensor& key,
              const Tensor& value, const AttentionMasks& masks, double dropout) {
  const auto& o = layer.options;
  if (o.variant == "softmax") {
    return softmax_attention(query, key, value, masks, dropout, layer.is_gqa());
  }
  if (!o.pools()) {
    return attend_to_keys(layer, query, key, value, layer.beta, /*key_weight=*/{}, masks, dropout);
  }
  if (o.is_linear()) return attend_pooled_heads(layer, query, key, value, masks.padding);
  return attention_sh(query, key, value, layer.scales(), optional(layer.beta),
                      optional(masks.padding), optional(masks.attention), o.normalises(),
                      o.count_weighting, o.tail, o.num_special, layer.beta_value(), o.use_std,
                      o.eps, masks.is_causal, /*query_offset=*/{}, dropout, /*scale=*/{},
                      layer.is_gqa());
}

Tensor attend_pooled_inputs(const AttentionBNSHImpl& layer, const Tensor& query, const Tensor& key,
                            const Tensor& value, const Tensor& padding, double dropout) {
  const auto [weight, bias] = layer.projection(0);
  const auto q = split_heads(torch::linear(query, weight, optional(bias)), layer.head_dim());
  const auto groups = group_heads(layer.scales());
  std::vector<Tensor> parts;
  for (const auto& [scale, heads] : groups) {
    auto keys = pool(layer, key, scale, padding);
    const auto values =
        value.is_same(key) ? keys.tokens : pool(layer, value, scale, padding).tokens;
    keys.tokens = project_heads(layer, keys.tokens, 1, heads);
    parts.push_back(
        attend_group(layer, q, heads, keys, project_heads(layer, values, 2, heads), dropout));
  }
  return merge_heads(parts, groups, layer.queries_per_key());
}

}  // namespace kktorch::detail
