#include "models/attention_bnsh.h"

#include <array>
#include <cmath>
#include <limits>

#include "models/option_checks.h"
#include "ops/attention_bn.h"

namespace kktorch {
namespace {

using torch::Tensor;

void check_options(const AttentionBNSHOptions& o) {
  const std::string expected = "AttentionBNSH: expected ";
  detail::check_choice(expected + "variant", o.variant, {"softmax", "bn"});
  detail::check_choice(expected + "beta_mode", o.beta_mode, {"fixed", "scalar", "per_head"});
  detail::check_positive(expected + "embed_dim", o.embed_dim);
  detail::check_positive(expected + "num_heads", o.num_heads);
  detail::check_positive(expected + "num_kv_heads", o.num_kv_heads.value_or(1));
  detail::check_positive(expected + "kdim", o.kdim.value_or(1));
  detail::check_positive(expected + "vdim", o.vdim.value_or(1));
  detail::check_positive(expected + "value_head_dim", o.value_head_dim.value_or(1));
  detail::check_probability(expected + "dropout", o.dropout);
  TORCH_CHECK_VALUE(o.embed_dim % o.num_heads == 0, expected,
                    "embed_dim divisible by num_heads, but got ", o.embed_dim, " and ",
                    o.num_heads);
  const auto kv_heads = o.num_kv_heads.value_or(o.num_heads);
  TORCH_CHECK_VALUE(o.num_heads % kv_heads == 0, expected,
                    "num_heads divisible by num_kv_heads, but got ", o.num_heads, " and ",
                    kv_heads);
  TORCH_CHECK_VALUE(std::isfinite(o.beta_init), expected, "a finite beta_init, but got ",
                    o.beta_init);
  TORCH_CHECK_VALUE(std::isfinite(o.eps) && o.eps >= 0, expected, "finite eps >= 0, but got ",
                    o.eps);
}

/// What nn.MultiheadAttention documents, before anything is computed. Batch and length are named in
/// the layout of the caller.
void check_inputs(const AttentionBNSHOptions& o, const Tensor& query, const Tensor& key,
                  const Tensor& value, const Tensor& padding, const Tensor& attn_mask,
                  bool is_causal) {
  const std::string expected = "AttentionBNSH: expected ";
  const auto kdim = o.kdim.value_or(o.embed_dim), vdim = o.vdim.value_or(o.embed_dim);
  TORCH_CHECK((query.dim() == 2 || query.dim() == 3) && key.dim() == query.dim() &&
                  value.dim() == query.dim() && query.size(-1) == o.embed_dim &&
                  key.size(-1) == kdim && value.size(-1) == vdim,
              expected, "query, key, value of 2 or 3 dimensions and widths ", o.embed_dim, ", ",
              kdim, ", ", vdim, ", but got ", query.sizes(), ", ", key.sizes(), ", ",
              value.sizes());
  const bool batched = query.dim() == 3;
  const int64_t batch_dim = o.batch_first ? 0 : 1, length_dim = batched ? 1 - batch_dim : 0;
  const auto batch = batched ? query.size(batch_dim) : 1;
  const auto queries = query.size(length_dim), keys = key.size(length_dim);
  TORCH_CHECK(key.sizes().slice(0, key.dim() - 1) == value.sizes().slice(0, value.dim() - 1) &&
                  (!batched || key.size(batch_dim) == batch),
              expected, "key and value of equal length and the batch size of query, but got ",
              query.sizes(), ", ", key.sizes(), ", ", value.sizes());
  TORCH_CHECK(!is_causal || queries == keys, expected,
              "as many queries as keys with is_causal, but got ", queries, " and ", keys);

  const auto padding_shape =
      batched ? std::vector<int64_t>{batch, keys} : std::vector<int64_t>{keys};
  TORCH_CHECK(!padding.defined() ||
                  (padding.scalar_type() == torch::kBool && padding.sizes() == padding_shape),
              expected, "key_padding_mask bool ", c10::IntArrayRef(padding_shape), ", but got ",
              padding.scalar_type(), " ", padding.sizes());
  const std::vector<int64_t> shared{queries, keys}, own{batch * o.num_heads, queries, keys};
  TORCH_CHECK(!attn_mask.defined() ||
                  ((attn_mask.scalar_type() == torch::kBool || attn_mask.is_floating_point()) &&
                   (attn_mask.sizes() == shared || attn_mask.sizes() == own)),
              expected, "attn_mask bool or floating ", c10::IntArrayRef(shared), " or ",
              c10::IntArrayRef(own), ", but got ", attn_mask.scalar_type(), " ", attn_mask.sizes());
}

/// `mask` (bool, True = visible, or additive, or undefined) restricted to where `visible` is true.
Tensor restrict_to(const Tensor& mask, const Tensor& visible) {
  if (!mask.defined()) return visible;
  if (mask.scalar_type() == torch::kBool) return mask.logical_and(visible);
  return torch::where(visible, mask, -std::numeric_limits<double>::infinity());
}

std::optional<Tensor> optional(const Tensor& t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}

}  // namespace

struct AttentionBNSHImpl::Masks {
  Tensor padding;    ///< [B, S] bool, True = ignore; may be undefined
  Tensor attention;  ///< [L, S] or [B, H, L, S], True = may attend, or additive; may be undefined
  bool is_causal;
};

AttentionBNSHImpl::AttentionBNSHImpl(const AttentionBNSHOptions& options_) : options(options_) {
  check_options(options);
  AttentionBNSHImpl::reset();
}

std::vector<int64_t> AttentionBNSHImpl::projection_rows() const {
  return {options.embed_dim, num_kv_heads() * head_dim(), num_kv_heads() * value_head_dim()};
}

void AttentionBNSHImpl::reset() {
  const auto rows = projection_rows();
  const auto width = options.embed_dim;
  const auto kdim = options.kdim.value_or(width), vdim = options.vdim.value_or(width);
  const auto total = rows[0] + rows[1] + rows[2];

  // nn.MultiheadAttention's order: a seed gives the same initial values there and here.
  out_proj = register_module(
      "out_proj",
      torch::nn::Linear(torch::nn::LinearOptions(options.num_heads * value_head_dim(), width)
                            .bias(options.bias)));
  const auto projection = [&](const char* name, int64_t n, int64_t inputs) {
    return register_parameter(name, torch::nn::init::xavier_uniform_(torch::empty({n, inputs})));
  };
  if (kdim == width && vdim == width) {
    in_proj_weight = projection("in_proj_weight", total, width);
  } else {
    q_proj_weight = projection("q_proj_weight", rows[0], width);
    k_proj_weight = projection("k_proj_weight", rows[1], kdim);
    v_proj_weight = projection("v_proj_weight", rows[2], vdim);
  }
  if (options.bias) {
    in_proj_bias = register_parameter("in_proj_bias", torch::zeros({total}));
    torch::nn::init::zeros_(out_proj->bias);
  }
  if (options.variant == "bn" && options.beta_mode != "fixed") {
    const auto shape = options.beta_mode == "per_head" ? std::vector<int64_t>{options.num_heads}
                                                       : std::vector<int64_t>{};
    beta = register_parameter("beta", torch::full(shape, options.beta_init));
  }
}

std::tuple<Tensor, Tensor> AttentionBNSHImpl::forward(const Tensor& query, const Tensor& key,
                                                      const Tensor& value,
                                                      const Tensor& key_padding_mask,
                                                      bool need_weights, const Tensor& attn_mask,
                                                      bool average_attn_weights, bool is_causal) {
  check_inputs(options, query, key, value, key_padding_mask, attn_mask, is_causal);
  const bool batched = query.dim() == 3;
  const auto to_batch_first = [&](const Tensor& t) {
    return !batched ? t.unsqueeze(0) : options.batch_first ? t : t.transpose(0, 1);
  };
  const bool self_attention = query.is_same(key) && key.is_same(value);
  const auto heads =
      project(to_batch_first(query), to_batch_first(key), to_batch_first(value), self_attention);
  const auto &q = heads[0], &k = heads[1], &v = heads[2];

  Masks masks{.padding = {}, .attention = attn_mask, .is_causal = is_causal};
  if (key_padding_mask.defined() && options.stats_mask) {
    masks.padding = batched ? key_padding_mask : key_padding_mask.unsqueeze(0);
  }
  if (attn_mask.defined()) {
    if (attn_mask.dim() == 3) masks.attention = attn_mask.unflatten(0, {q.size(0), q.size(1)});
    if (attn_mask.scalar_type() == torch::kBool) masks.attention = masks.attention.logical_not();
  }

  const double dropout = is_training() ? options.dropout : 0.0;
  auto out = out_proj->forward(attend(q, k, v, masks, dropout).transpose(1, 2).flatten(2));
  out = !batched ? out.squeeze(0) : options.batch_first ? out : out.transpose(0, 1);
  if (!need_weights) return {out, Tensor()};

  // The output is P v: with the identity in place of v it is P itself, whatever the variant.
  const auto size = k.size(2);
  const auto identity = torch::eye(size, v.options()).expand({k.size(0), k.size(1), size, size});
  auto weights = attend(q, k, identity, masks, /*dropout=*/0.0);
  if (average_attn_weights) weights = weights.mean(1);
  return {out, batched ? weights : weights.squeeze(0)};
}

/// Query, key and value heads [B, heads, length, width].
std::vector<Tensor> AttentionBNSHImpl::project(const Tensor& query, const Tensor& key,
                                               const Tensor& value, bool self_attention) const {
  const auto rows = projection_rows();
  std::vector<Tensor> projected(3);
  if (self_attention && in_proj_weight.defined()) {  // one matrix product instead of three
    projected =
        torch::linear(query, in_proj_weight, optional(in_proj_bias)).split_with_sizes(rows, -1);
  } else {
    const auto weights = in_proj_weight.defined()
                             ? in_proj_weight.split_with_sizes(rows)
                             : std::vector{q_proj_weight, k_proj_weight, v_proj_weight};
    const auto biases =
        in_proj_bias.defined() ? in_proj_bias.split_with_sizes(rows) : std::vector<Tensor>(3);
    const std::array inputs{query, key, value};
    for (size_t i = 0; i < inputs.size(); ++i) {
      projected[i] = torch::linear(inputs[i], weights[i], optional(biases[i]));
    }
  }
  const std::array widths{head_dim(), head_dim(), value_head_dim()};
  for (size_t i = 0; i < projected.size(); ++i) {
    projected[i] = projected[i].unflatten(-1, {rows[i] / widths[i], widths[i]}).transpose(1, 2);
  }
  return projected;
}

/// The heads' outputs [B, H, L, Dv]. A further variant (scaled heads, linear attention) is a
/// further case here, together with its name in check_options.
Tensor AttentionBNSHImpl::attend(const Tensor& query, const Tensor& key, const Tensor& value,
                                 const Masks& masks, double dropout) const {
  const bool gqa = num_kv_heads() != options.num_heads;
  if (options.variant == "bn") {
    return attention_bn(query, key, value, optional(beta), optional(masks.padding),
                        optional(masks.attention), /*key_weight=*/{},
                        beta.defined() ? 1.0 : options.beta_init, options.use_std, options.eps,
                        /*stats=*/"auto", masks.is_causal, /*query_offset=*/{}, dropout,
                        /*scale=*/{}, gqa);
  }
  // scaled_dot_product_attention multiplies padded keys and values by 0: select, they may be NaN.
  // It takes is_causal only without a mask.
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

void AttentionBNSHImpl::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << "kktorch::AttentionBNSH(embed_dim=" << options.embed_dim
         << ", num_heads=" << options.num_heads << ", num_kv_heads=" << num_kv_heads()
         << ", value_head_dim=" << value_head_dim() << ", dropout=" << options.dropout
         << ", batch_first=" << options.batch_first << ", variant=" << options.variant;
  if (options.variant == "bn") {
    stream << ", beta_mode=" << options.beta_mode << ", beta_init=" << options.beta_init
           << ", use_std=" << options.use_std << ", eps=" << options.eps;
  }
  stream << ", stats_mask=" << options.stats_mask << ")";
}

}  // namespace kktorch
