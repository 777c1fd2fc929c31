#pragma once
// A small vision transformer: an image is a sequence of patches behind one class token.
#include <torch/torch.h>

#include "models/encoder.h"

namespace kktorch {

/// Options of SmallViT. image_height, image_width and classes are required.
struct SmallViTOptions {
  int64_t image_height = 0;    ///< a multiple of patch
  int64_t image_width = 0;     ///< a multiple of patch
  int64_t image_channels = 1;  ///< C
  int64_t patch = 1;           ///< height and width of a patch
  int64_t classes = 0;         ///< K
  EncoderOptions encoder = {.norm = "layer", .norm_first = true};
};

/// Images x [B, C, height, width] to logits [B, K], with P patches in row-major order:
///
///     h = encoder([class_token, embedding(patches of (x - input_mean) / input_std)])
///     logits = head(norm(h of the class token))
///
/// The class token is a special token of the attention: scaled heads do not pool it, convolutions
/// pass it by. The windows of scaled heads run along the rows of patches.
///
/// Parameters: embedding (Linear C patch^2 -> width; a patch is laid out [C, patch, patch], as the
/// weight of a strided convolution), class_token [width], initially uniform in [-0.02, 0.02],
/// encoder (Encoder, with 1 + P learned positions), norm (TokenNorm "layer"), head (Linear width
/// -> K). Buffers: input_mean, input_std [C], so that a saved model takes raw images; 0 and 1 until
/// standardise_with() is called. Initial values are those of torch.nn and Encoder where nothing
/// else is said, drawn in this order. A seed gives the same model in C++ and in Python.
/// @throws c10::ValueError  "SmallViT: expected <option>, but got <value>".
class SmallViTImpl : public torch::nn::Cloneable<SmallViTImpl> {
 public:
  explicit SmallViTImpl(const SmallViTOptions& options);

  void reset() override;

  /// Sets input_mean and input_std to the statistics [C] of the training set's pixels. A channel
  /// with standard deviation 0 is centred only.
  void standardise_with(const torch::Tensor& mean, const torch::Tensor& std);

  /// @param images       [B, C, height, width] floating, raw (not standardised).
  /// @return             logits [B, classes].
  /// @throws c10::Error  "SmallViT: expected <what>, but got <values>".
  torch::Tensor forward(const torch::Tensor& images);

  void pretty_print(std::ostream& stream) const override;

  SmallViTOptions options;
  torch::Tensor input_mean, input_std, class_token;
  torch::nn::Linear embedding{nullptr}, head{nullptr};
  Encoder encoder{nullptr};
  TokenNorm norm{nullptr};
};
TORCH_MODULE(SmallViT);

}  // namespace kktorch
