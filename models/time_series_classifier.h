#pragma once
// A transformer encoder that classifies multivariate time series of different lengths.
#include <torch/torch.h>

#include "models/encoder.h"

namespace kktorch {

/// Options of TimeSeriesClassifier. channels, classes and max_length are required.
struct TimeSeriesClassifierOptions {
  int64_t channels = 0;    ///< C
  int64_t classes = 0;     ///< K
  int64_t max_length = 0;  ///< longest series; the flattening head fixes it
  EncoderOptions encoder = {};
  bool ragged_masks = true;  ///< attention ignores padded steps; false: every series has max_length
                             ///< steps for it, the padded ones zero (as in code that masks nothing)
};

/// Series x [B, L, C] to logits [B, K]:
///
///     h = encoder(sqrt(width) * embedding((x - input_mean) / input_std))
///     logits = head(flatten(dropout(activation(h)), padded steps zero, max_length steps))
///
/// The shape of the public mvts_transformer (Zerveas et al., KDD 2021, arXiv 2010.02803).
///
/// Parameters: embedding (Linear C -> width), encoder (Encoder, with learned positions), head
/// (Linear max_length width -> K). Buffers: input_mean, input_std [C], so that a saved model takes
/// raw series; 0 and 1 until standardise_with() is called. Initial values are those of torch.nn and
/// Encoder, drawn in this order. A seed gives the same model in C++ and in Python.
/// @throws c10::ValueError  "TimeSeriesClassifier: expected <option>, but got <value>".
class TimeSeriesClassifierImpl : public torch::nn::Cloneable<TimeSeriesClassifierImpl> {
 public:
  explicit TimeSeriesClassifierImpl(const TimeSeriesClassifierOptions& options);

  void reset() override;

  /// Sets input_mean and input_std to the statistics [C] of the training set's valid steps. A
  /// channel with standard deviation 0 is centred only.
  void standardise_with(const torch::Tensor& mean, const torch::Tensor& std);

  /// @param x             [B, L, C] floating, raw (not standardised), L <= max_length.
  /// @param padding_mask  bool [B, L], True = padding, which may hold anything.
  /// @return              logits [B, classes].
  /// @throws c10::Error   "TimeSeriesClassifier: expected <what>, but got <values>".
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& padding_mask = {});

  void pretty_print(std::ostream& stream) const override;

  TimeSeriesClassifierOptions options;
  torch::Tensor input_mean, input_std;
  torch::nn::Linear embedding{nullptr}, head{nullptr};
  Encoder encoder{nullptr};
};
TORCH_MODULE(TimeSeriesClassifier);

}  // namespace kktorch
