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

Tensor EncoderImpl::forward(const Tensor& x, const Tensor& padding_mask) {
  auto h = torch::dropout(x + position.slice(0, 0, x.size(1)), options.dropout, is_training());
  for (const auto& layer : *layers) h = layer->as<EncoderLayer>()->forward(h, padding_mask);
  return h;
}

void EncoderImpl::pretty_print(std::ostream& stream) const {
  stream << "kktorch::Encoder(length=" << layout.length << ", width=" << options.width
         << ", heads=" << options.heads << ", ffn=" << options.ffn << ", layers=" << options.layers
         << ", attention=" << options.attention << ", norm=" << options.norm << ")";
}

}  // namespace kktorch
