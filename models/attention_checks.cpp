#include "models/attention_checks.h"

#include <algorithm>
#include <cmath>

#include "models/option_checks.h"

namespace kktorch::detail {
namespace {

using torch::Tensor;

const std::string kExpected = "AttentionBNSH: expected ";

void check_widths(const AttentionBNSHOptions& o) {
  check_positive(kExpected + "embed_dim", o.embed_dim);
  check_positive(kExpected + "num_heads", o.num_heads);
  check_positive(kExpected + "num_kv_heads", o.num_kv_heads.value_or(1));
  check_positive(kExpected + "kdim", o.kdim.value_or(1));
  check_positive(kExpected + "vdim", o.vdim.value_or(1));
  check_positive(kExpected + "value_head_dim", o.value_head_dim.value_or(1));
  TORCH_CHECK_VALUE(o.embed_dim % o.num_heads == 0, kExpected,
                    "embed_dim divisible by num_heads, but got ", o.embed_dim, " and ",
                    o.num_heads);
  const auto kv_heads = o.num_kv_heads.value_or(o.num_heads);
  TORCH_CHECK_VALUE(o.num_heads % kv_heads == 0, kExpected,
                    "num_heads divisible by num_kv_heads, but got ", o.num_heads, " and ",
                    kv_heads);
}

void check_pooling(const AttentionBNSHOptions& o) {
  const auto kv_heads = static_cast<size_t>(o.num_kv_heads.value_or(o.num_heads));
  const auto n = o.scales.size();
  TORCH_CHECK_VALUE(
      (n <= 1 || n == kv_heads) &&
          std::all_of(o.scales.begin(), o.scales.end(), [](int64_t s) { return s >= 1; }),
      kExpected, "1 or ", kv_heads, " scales, each >= 1, but got ", c10::IntArrayRef(o.scales));
  check_choice(kExpected + "tail", o.tail, {"ceil", "drop"});
  TORCH_CHECK_VALUE(o.num_special >= 0, kExpected, "num_special >= 0, but got ", o.num_special);
}

void check_conv_inputs(const AttentionBNSHOptions& o, int64_t queries, int64_t keys,
                       bool is_causal) {
  if (o.conv != "2d") return;
  TORCH_CHECK_NOT_IMPLEMENTED(!is_causal, kExpected,
                              "is_causal=false with conv '2d', but got true");
  for (const auto length : {queries, keys}) {
    TORCH_CHECK(length >= o.num_special && (length - o.num_special) % o.conv_columns == 0,
                kExpected, "num_special=", o.num_special,
                " tokens and rows of conv_columns=", o.conv_columns,
                " with conv '2d', but got a length of ", length);
  }
}

void check_variant_inputs(const AttentionBNSHOptions& o, const Tensor& attn_mask, bool is_causal) {
  if (!o.is_linear()) return;
  TORCH_CHECK_NOT_IMPLEMENTED(!attn_mask.defined(), kExpected, "no attn_mask with variant '",
                              o.variant, "', but got one");
  TORCH_CHECK_NOT_IMPLEMENTED(!is_causal || !o.pools(), kExpected, "is_causal=false with variant '",
                              o.variant, "', but got true");
}

}  // namespace

void check_options(const AttentionBNSHOptions& o) {
  check_choice(kExpected + "variant", o.variant,
               {"softmax", "bn", "sh", "bnsh", "linear", "linear_bn", "linear_sh", "linear_bnsh"});
  check_choice(kExpected + "beta_mode", o.beta_mode, {"fixed", "scalar", "per_head"});
  check_widths(o);
  check_probability(kExpected + "dropout", o.dropout);
  TORCH_CHECK_VALUE(!o.is_linear() || o.dropout == 0, kExpected, "dropout 0 with variant '",
                    o.variant, "', which has no attention probabilities, but got ", o.dropout);
  TORCH_CHECK_VALUE(std::isfinite(o.beta_init), kExpected, "a finite beta_init, but got ",
                    o.beta_init);
  TORCH_CHECK_VALUE(std::isfinite(o.eps) && o.eps >= 0, kExpected, "finite eps >= 0, but got ",
                    o.eps);
  check_pooling(o);
  check_choice(kExpected + "conv", o.conv, {"none", "1d", "2d"});
  TORCH_CHECK_VALUE(o.conv != "2d" || o.conv_columns >= 1, kExpected,
                    "conv_columns >= 1 with conv '2d', but got ", o.conv_columns);
}

void check_inputs(const AttentionBNSHOptions& o, const Tensor& query, const Tensor& key,
                  const Tensor& value, const Tensor& padding, const Tensor& attn_mask,
                  bool is_causal) {
  const auto kdim = o.kdim.value_or(o.embed_dim), vdim = o.vdim.value_or(o.embed_dim);
  TORCH_CHECK((query.dim() == 2 || query.dim() == 3) && key.dim() == query.dim() &&
                  value.dim() == query.dim() && query.size(-1) == o.embed_dim &&
                  key.size(-1) == kdim && value.size(-1) == vdim,
              kExpected, "query, key, value of 2 or 3 dimensions and widths ", o.embed_dim, ", ",
              kdim, ", ", vdim, ", but got ", query.sizes(), ", ", key.sizes(), ", ",
              value.sizes());
  const bool batched = query.dim() == 3;
  const int64_t batch_dim = o.batch_first ? 0 : 1, length_dim = batched ? 1 - batch_dim : 0;
  const auto batch = batched ? query.size(batch_dim) : 1;
  const auto queries = query.size(length_dim), keys = key.size(length_dim);
  TORCH_CHECK(key.sizes().slice(0, key.dim() - 1) == value.sizes().slice(0, value.dim() - 1) &&
                  (!batched || key.size(batch_dim) == batch),
              kExpected, "key and value of equal length and the batch size of query, but got ",
              query.sizes(), ", ", key.sizes(), ", ", value.sizes());
  TORCH_CHECK(!is_causal || queries == keys, kExpected,
              "as many queries as keys with is_causal, but got ", queries, " and ", keys);

  const auto padding_shape =
      batched ? std::vector<int64_t>{batch, keys} : std::vector<int64_t>{keys};
  TORCH_CHECK(!padding.defined() ||
                  (padding.scalar_type() == torch::kBool && padding.sizes() == padding_shape),
              kExpected, "key_padding_mask bool ", c10::IntArrayRef(padding_shape), ", but got ",
              padding.scalar_type(), " ", padding.sizes());
  const std::vector<int64_t> shared{queries, keys}, own{batch * o.num_heads, queries, keys};
  TORCH_CHECK(!attn_mask.defined() ||
                  ((attn_mask.scalar_type() == torch::kBool || attn_mask.is_floating_point()) &&
                   (attn_mask.sizes() == shared || attn_mask.sizes() == own)),
              kExpected, "attn_mask bool or floating ", c10::IntArrayRef(shared), " or ",
              c10::IntArrayRef(own), ", but got ", attn_mask.scalar_type(), " ", attn_mask.sizes());
  check_variant_inputs(o, attn_mask, is_causal);
  check_conv_inputs(o, queries, keys, is_causal);
}

void check_decodes(const AttentionBNSHOptions& o) {
  TORCH_CHECK_NOT_IMPLEMENTED(!o.is_linear(), kExpected,
                              "variant in {softmax, bn, sh, bnsh} to decode, but got '", o.variant,
                              "'");
  TORCH_CHECK_NOT_IMPLEMENTED(o.conv == "none", kExpected, "conv 'none' to decode, but got '",
                              o.conv, "'");
}

}  // namespace kktorch::detail
