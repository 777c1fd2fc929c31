#include "models/attention_bnsh.h"

#include <array>

#include "models/attention_checks.h"
#include "models/attention_variants.h"

namespace kktorch {

using detail::optional;
using torch::Tensor;

namespace {

/// The masks of nn.MultiheadAttention, in the convention of the ops. x [B, L, E].
detail::AttentionMasks op_masks(const AttentionBNSHOptions& options, const Tensor& x, bool batched,
                                const Tensor& key_padding_mask, const Tensor& attn_mask,
                                bool is_causal) {
  detail::AttentionMasks masks{.padding = {}, .attention = attn_mask, .is_causal = is_causal};
  if (key_padding_mask.defined() && options.stats_mask) {
    masks.padding = batched ? key_padding_mask : key_padding_mask.unsqueeze(0);
  }
  if (attn_mask.defined()) {
    if (attn_mask.dim() == 3) {
      masks.attention = attn_mask.unflatten(0, {x.size(0), options.num_heads});
    }
    if (attn_mask.scalar_type() == torch::kBool) masks.attention = masks.attention.logical_not();
  }
  return masks;
}

}  // namespace

std::vector<int64_t> default_scales(int64_t heads) {
  const int64_t levels = heads >= 8 ? 4 : heads >= 2 ? 2 : 1;
  std::vector<int64_t> scales(heads);
  for (int64_t h = 0; h < heads; ++h) scales[h] = int64_t{1} << (h * levels / heads);
  return scales;
}

AttentionBNSHImpl::AttentionBNSHImpl(const AttentionBNSHOptions& options_) : options(options_) {
  detail::check_options(options);
  AttentionBNSHImpl::reset();
}

std::vector<int64_t> AttentionBNSHImpl::scales() const {
  if (!options.pools()) return std::vector<int64_t>(num_kv_heads(), 1);
  if (options.scales.empty()) return default_scales(num_kv_heads());
  if (options.scales.size() == 1) return std::vector<int64_t>(num_kv_heads(), options.scales[0]);
  return options.scales;
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
  if (options.normalises() && options.beta_mode != "fixed") {
    const auto heads = options.is_linear() ? num_kv_heads() : options.num_heads;
    const auto shape =
        options.beta_mode == "per_head" ? std::vector<int64_t>{heads} : std::vector<int64_t>{};
    beta = register_parameter("beta", torch::full(shape, options.beta_init));
  }
  if (options.conv != "none") {
    const auto conv = [&](const char* name, int64_t channels) {
      return register_module(
          name, TokenConv(channels, options.conv, options.conv_columns, options.num_special));
    };
    conv_q = conv("conv_q", rows[0]);
    conv_k = conv("conv_k", rows[1]);
  }
}

std::tuple<Tensor, Tensor> AttentionBNSHImpl::forward(const Tensor& query, const Tensor& key,
                                                      const Tensor& value,
                                                      const Tensor& key_padding_mask,
                                                      bool need_weights, const Tensor& attn_mask,
                                                      bool average_attn_weights, bool is_causal) {
  detail::check_inputs(options, query, key, value, key_padding_mask, attn_mask, is_causal);
  const bool batched = query.dim() == 3;
  const auto to_batch_first = [&](const Tensor& t) {
    return !batched ? t.unsqueeze(0) : options.batch_first ? t : t.transpose(0, 1);
  };
  // One tensor for equal inputs, so that what follows still sees that they are.
  const auto x = to_batch_first(query);
  const auto memory = key.is_same(query) ? x : to_batch_first(key);
  const auto content = value.is_same(key) ? memory : to_batch_first(value);

  const auto masks = op_masks(options, x, batched, key_padding_mask, attn_mask, is_causal);
  const double dropout = is_training() ? options.dropout : 0.0;
  const bool materialise = need_weights || observer;
  Tensor heads, weights;
  if (options.pools() && !conv_k && !is_causal && !attn_mask.defined() && !materialise) {
    heads = detail::attend_pooled_inputs(*this, x, memory, content, masks.padding, dropout);
  } else {
    auto projected = project(x, memory, content);
    auto &q = projected[0], &k = projected[1], &v = projected[2];
    if (conv_k) {
      q = conv_q->forward(q, memory.is_same(x) ? masks.padding : Tensor(), is_causal);
      k = conv_k->forward(k, masks.padding, is_causal);
    }
    heads = detail::attend(*this, q, k, v, masks, dropout);
    if (materialise) {
      // The output is P v: with the identity in place of v it is P itself, whatever the variant.
      const auto size = k.size(2);
      const auto eye = torch::eye(size, v.options()).expand({k.size(0), k.size(1), size, size});
      weights = detail::attend(*this, q, k, eye, masks, /*dropout=*/0.0);
    }
  }
  if (observer) observer({.outputs = heads, .weights = weights, .key_padding = masks.padding});
  weights = !need_weights ? Tensor() : average_attn_weights ? weights.mean(1) : weights;
  if (weights.defined() && !batched) weights = weights.squeeze(0);
  const auto out = out_proj->forward(heads.transpose(1, 2).flatten(2));
  return {!batched ? out.squeeze(0) : options.batch_first ? out : out.transpose(0, 1), weights};
}

std::pair<Tensor, Tensor> AttentionBNSHImpl::projection(size_t i) const {
  const auto rows = projection_rows();
  const auto bias = in_proj_bias.defined() ? in_proj_bias.split_with_sizes(rows)[i] : Tensor();
  if (in_proj_weight.defined()) return {in_proj_weight.split_with_sizes(rows)[i], bias};
  return {std::array{q_proj_weight, k_proj_weight, v_proj_weight}[i], bias};
}

std::vector<Tensor> AttentionBNSHImpl::project(const Tensor& query, const Tensor& key,
                                               const Tensor& value) const {
  std::vector<Tensor> projected;
  if (in_proj_weight.defined() && query.is_same(key) && key.is_same(value)) {
    // One matrix product instead of three.
    projected = torch::linear(query, in_proj_weight, optional(in_proj_bias))
                    .split_with_sizes(projection_rows(), -1);
  } else {
    const std::array inputs{query, key, value};
    for (size_t i = 0; i < inputs.size(); ++i) {
      const auto [weight, bias] = projection(i);
      projected.push_back(torch::linear(inputs[i], weight, optional(bias)));
    }
  }
  const std::array widths{head_dim(), head_dim(), value_head_dim()};
  for (size_t i = 0; i < widths.size(); ++i) {
    projected[i] = detail::split_heads(projected[i], widths[i]);
  }
  return projected;
}

void AttentionBNSHImpl::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << "kktorch::AttentionBNSH(embed_dim=" << options.embed_dim
         << ", num_heads=" << options.num_heads << ", num_kv_heads=" << num_kv_heads()
         << ", value_head_dim=" << value_head_dim() << ", dropout=" << options.dropout
         << ", batch_first=" << options.batch_first << ", variant=" << options.variant;
  if (options.normalises()) {
    stream << ", beta_mode=" << options.beta_mode << ", beta_init=" << options.beta_init
           << ", use_std=" << options.use_std << ", eps=" << options.eps;
  }
  if (options.pools()) {
    stream << ", scales=" << c10::IntArrayRef(scales()) << ", tail=" << options.tail
           << ", count_weighting=" << options.count_weighting
           << ", num_special=" << options.num_special;
  }
  stream << ", conv=" << options.conv << ", stats_mask=" << options.stats_mask << ")";
}

}  // namespace kktorch
