#include "models/encoder.h"

#include "models/option_checks.h"

namespace kktorch {
namespace {

using torch::Tensor;

EncoderLayerOptions layer_options(const EncoderOptions& o, const TokenLayout& layout) {
  return {.attention = {.embed_dim = o.width,
                        .num_heads = o.heads,
                        .dropout = o.attention_dropout,
                        .variant = o.attention,
                        .beta_mode = o.beta_mode,
                        .beta_init = o.beta_init,
                        .use_std = o.use_std,
                        .eps = o.eps,
                        .stats_mask = layout.stats_mask,
                        .scales = o.scales,
                        .tail = o.tail,
                        .count_weighting = o.count_weighting,
                        .num_special = layout.num_special,
                        .conv = o.conv,
                        .conv_columns = layout.conv_columns},
          .ffn = o.ffn,
          .dropout = o.dropout,
          .norm = o.norm,
          .norm_first = o.norm_first,
          .activation = o.activation};
}

}  // namespace

EncoderImpl::EncoderImpl(const EncoderOptions& options_, const TokenLayout& layout_)
    : options(options_), layout(layout_) {
  const std::string expected = "Encoder: expected ";
  detail::check_positive(expected + "width", options.width);
  detail::check_positive(expected + "layers", options.layers);
  detail::check_positive(expected + "length", layout.length);
  EncoderImpl::reset();
}

void EncoderImpl::reset() {
  position = register_parameter("position",
                                torch::empty({layout.length, options.width}).uniform_(-0.02, 0.02));
  layers = register_module("layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < options.layers; ++i) {
    layers->push_back(EncoderLayer(layer_options(options, layout)));
  }
}

Tensor EncoderImpl::forward(const Tensor& x, const Tensor& padding_mask, bool is_causal) {
  TORCH_CHECK(x.dim() == 3 && x.size(1) <= layout.length && x.size(2) == options.width,
              "Encoder: expected x [B, L <= ", layout.length, ", ", options.width, "], but got ",
              x.sizes());
  auto h = torch::dropout(x + position.slice(0, 0, x.size(1)), options.dropout, is_training());
  for (const auto& layer : *layers)
    h = layer->as<EncoderLayer>()->forward(h, padding_mask, {}, is_causal);
  return h;
}

std::vector<KVCache> EncoderImpl::make_caches(int64_t batch, int64_t capacity) const {
  TORCH_CHECK_VALUE(capacity <= layout.length, "Encoder: expected capacity <= ", layout.length,
                    ", the number of positions, but got ", capacity);
  std::vector<KVCache> caches;
  for (const auto& layer : *layers)
    caches.push_back(layer->as<EncoderLayer>()->self_attn->make_cache(batch, capacity));
  return caches;
}

Tensor EncoderImpl::decode(const Tensor& x_new, std::vector<KVCache>& caches,
                           const std::vector<int64_t>& valid) {
  TORCH_CHECK(caches.size() == layers->size(), "Encoder: expected ", layers->size(),
              " caches, one per layer, but got ", caches.size());
  const auto batch = caches[0].batch();
  TORCH_CHECK(x_new.dim() == 3 && x_new.size(0) == batch && x_new.size(2) == options.width,
              "Encoder: expected x_new [", batch, ", T, ", options.width, "], but got ",
              x_new.sizes());
  torch::NoGradGuard no_grad;
  const auto& past = caches[0].length;
  const auto place = past.unsqueeze(1) + torch::arange(x_new.size(1), past.options());
  // Only padding behind the valid tokens lies beyond the last position: the caches end before it.
  auto h = x_new + torch::embedding(position, place.clamp_max(layout.length - 1));
  for (size_t i = 0; i < caches.size(); ++i)
    h = layers[i]->as<EncoderLayer>()->decode(h, caches[i], valid);
  return h;
}

void EncoderImpl::pretty_print(std::ostream& stream) const {
  stream << "kktorch::Encoder(length=" << layout.length << ", width=" << options.width
         << ", heads=" << options.heads << ", ffn=" << options.ffn << ", layers=" << options.layers
         << ", attention=" << options.attention << ", norm=" << options.norm << ")";
}

}  // namespace kktorch
