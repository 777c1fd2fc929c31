#include "models/time_series_classifier.h"

#include <cmath>

#include "models/classifier_inputs.h"
#include "models/option_checks.h"

namespace kktorch {
namespace {

using torch::Tensor;

constexpr auto kName = "TimeSeriesClassifier";

void check_inputs(const TimeSeriesClassifierOptions& o, const Tensor& x, const Tensor& padding) {
  TORCH_CHECK(
      x.dim() == 3 && x.is_floating_point() && x.size(1) <= o.max_length && x.size(2) == o.channels,
      "TimeSeriesClassifier: expected x floating [B, L <= ", o.max_length, ", ", o.channels,
      "], but got ", x.scalar_type(), " ", x.sizes());
  detail::check_padding_mask(kName, padding, x);
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
  detail::check_positive(expected + "width", options.encoder.width);
  TimeSeriesClassifierImpl::reset();
}

void TimeSeriesClassifierImpl::reset() {
  const auto& o = options;
  input_mean = register_buffer("input_mean", torch::zeros({o.channels}));
  input_std = register_buffer("input_std", torch::ones({o.channels}));
  embedding = register_module("embedding", torch::nn::Linear(o.channels, o.encoder.width));
  encoder = register_module(
      "encoder",
      Encoder(o.encoder, TokenLayout{.length = o.max_length, .stats_mask = o.ragged_masks}));
  head = register_module("head", torch::nn::Linear(o.max_length * o.encoder.width, o.classes));
}

void TimeSeriesClassifierImpl::standardise_with(const Tensor& mean, const Tensor& std) {
  detail::set_standardisation(kName, mean, std, input_mean, input_std);
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
  h = encoder(embedding(h) * std::sqrt(options.encoder.width), padding);
  h = torch::dropout(activate(h, options.encoder.activation), options.encoder.dropout,
                     is_training());
  if (padding.defined()) h = h.masked_fill(padding.unsqueeze(-1), 0);
  return head(pad_to(h, options.max_length, 0).flatten(1));
}

void TimeSeriesClassifierImpl::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << "kktorch::TimeSeriesClassifier(channels=" << options.channels
         << ", classes=" << options.classes << ", max_length=" << options.max_length
         << ", ragged_masks=" << options.ragged_masks << ")";
}

}  // namespace kktorch
