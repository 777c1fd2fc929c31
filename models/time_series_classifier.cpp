#include "models/time_series_classifier.h"

#include <cmath>

#include "models/option_checks.h"

namespace kktorch {
namespace {

using torch::Tensor;

void check_inputs(const TimeSeriesClassifierOptions& o, const Tensor& x, const Tensor& padding) {
  TORCH_CHECK(
      x.dim() == 3 && x.is_floating_point() && x.size(1) <= o.max_length && x.size(2) == o.channels,
      "TimeSeriesClassifier: expected x floating [B, L <= ", o.max_length, ", ", o.channels,
      "], but got ", x.scalar_type(), " ", x.sizes());
  TORCH_CHECK(!padding.defined() || (padding.scalar_type() == torch::kBool &&
                                     padding.sizes() == x.sizes().slice(0, 2)),
              "TimeSeriesClassifier: expected padding_mask bool ", x.sizes().slice(0, 2),
              ", but got ", padding.scalar_type(), " ", padding.sizes());
}

EncoderLayerOptions layer_options(const TimeSeriesClassifierOptions& o) {
  return {.attention = {.embed_dim = o.width,
                        .num_heads = o.heads,
                        .dropout = o.attention_dropout,
                        .variant = o.attention,
                        .beta_mode = o.beta_mode,
                        .beta_init = o.beta_init,
                        .use_std = o.use_std,
                        .eps = o.eps,
                        .stats_mask = o.ragged_masks},
          .ffn = o.ffn,
          .dropout = o.dropout,
          .norm = o.norm,
          .activation = o.activation};
}

/// Appends `value`s along dimension 1 until it has `length` entries.
Tensor pad_to(const Tensor& t, int64_t length, double value) {
  std::vector<int64_t> amounts(2 * (t.dim() - 2), 0);
  amounts.insert(amounts.end(), {0, length - t.size(1)});
  return torch::constant_pad_nd(t, amounts, value);
}

}  // namespace

TimeSeriesClassifierImpl::TimeSeriesClassifierImpl(const TimeSeriesClassifierOptions& options_)
    : options(options_) {
  const std::string expected = "TimeSeriesClassifier: expected ";
  detail::check_positive(expected + "channels", options.channels);
  detail::check_positive(expected + "classes", options.classes);
  detail::check_positive(expected + "max_length", options.max_length);
  detail::check_positive(expected + "layers", options.layers);
  TimeSeriesClassifierImpl::reset();
}

void TimeSeriesClassifierImpl::reset() {
  const auto& o = options;
  input_mean = register_buffer("input_mean", torch::zeros({o.channels}));
  input_std = register_buffer("input_std", torch::ones({o.channels}));
  embedding = register_module("embedding", torch::nn::Linear(o.channels, o.width));
  position =
      register_parameter("position", torch::empty({o.max_length, o.width}).uniform_(-0.02, 0.02));
  layers = register_module("layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < o.layers; ++i) layers->push_back(EncoderLayer(layer_options(o)));
  head = register_module("head", torch::nn::Linear(o.max_length * o.width, o.classes));
}

void TimeSeriesClassifierImpl::standardise_with(const Tensor& mean, const Tensor& std) {
  TORCH_CHECK(mean.sizes() == input_mean.sizes() && std.sizes() == input_std.sizes(),
              "TimeSeriesClassifier: expected mean and std of shape ", input_mean.sizes(),
              ", but got ", mean.sizes(), " and ", std.sizes());
  TORCH_CHECK_VALUE(mean.isfinite().all().item<bool>() && std.isfinite().all().item<bool>() &&
                        (std >= 0).all().item<bool>(),
                    "TimeSeriesClassifier: expected finite mean and std >= 0, but got ", mean,
                    " and ", std);
  torch::NoGradGuard no_grad;
  input_mean.copy_(mean);
  input_std.copy_(std.masked_fill(std == 0, 1));
}

Tensor TimeSeriesClassifierImpl::forward(const Tensor& x, const Tensor& padding_mask) {
  check_inputs(options, x, padding_mask);
  auto padding = padding_mask;
  auto h = (x.to(input_mean.dtype()) - input_mean) / input_std;
  if (padding.defined()) h = h.masked_fill(padding.unsqueeze(-1), 0);
  if (!options.ragged_masks) {
    if (!padding.defined())
      padding = torch::zeros({x.size(0), x.size(1)}, x.options().dtype(torch::kBool));
    h = pad_to(h, options.max_length, 0);
    padding = pad_to(padding, options.max_length, 1);
  }
  const auto dropout = [this](const Tensor& t) {
    return torch::dropout(t, options.dropout, is_training());
  };
  h = dropout(embedding(h) * std::sqrt(options.width) + position.slice(0, 0, h.size(1)));
  for (const auto& layer : *layers) h = layer->as<EncoderLayer>()->forward(h, padding);
  h = dropout(activate(h, options.activation));
  if (padding.defined()) h = h.masked_fill(padding.unsqueeze(-1), 0);
  return head(pad_to(h, options.max_length, 0).flatten(1));
}

void TimeSeriesClassifierImpl::pretty_print(std::ostream& stream) const {
  stream << "kktorch::TimeSeriesClassifier(channels=" << options.channels
         << ", classes=" << options.classes << ", max_length=" << options.max_length
         << ", width=" << options.width << ", heads=" << options.heads << ", ffn=" << options.ffn
         << ", layers=" << options.layers << ", attention=" << options.attention
         << ", norm=" << options.norm << ")";
}

}  // namespace kktorch
