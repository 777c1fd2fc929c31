#pragma once
// Normalisation of token features, over a token or over the tokens of a batch.
#include <torch/torch.h>

#include <string>

namespace kktorch {

/// Affine normalisation of x [B, L, width]:
///
///     y = (x - mean) / sqrt(var + 1e-5) * weight + bias
///
/// "layer"         mean and variance of each token (nn.LayerNorm).
/// "batch"         of each feature over batch and time in training, running averages (momentum 0.1)
///                 in evaluation (nn.BatchNorm1d over the B L tokens). Padding counts like data.
/// "batch_masked"  the same over the tokens that are no padding.
///
/// Parameters weight, bias [width]; the batch kinds have the buffers running_mean, running_var
/// [width] and num_batches_tracked, as nn.BatchNorm1d does.
/// @throws c10::ValueError  "TokenNorm: expected kind in {…}, but got '…'".
class TokenNormImpl : public torch::nn::Cloneable<TokenNormImpl> {
 public:
  TokenNormImpl(std::string kind, int64_t width);

  void reset() override;

  /// @param x             [B, L, width], any floating dtype.
  /// @param padding_mask  bool [B, L], True = padding; used by "batch_masked" in training only.
  /// @return              y, shape of x.
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& padding_mask = {});

  void pretty_print(std::ostream& stream) const override;

  static constexpr double kEps = 1e-5, kMomentum = 0.1;

  std::string kind;
  int64_t width;
  torch::Tensor weight, bias, running_mean, running_var, num_batches_tracked;

 private:
  torch::Tensor masked_batch_norm(const torch::Tensor& x, const torch::Tensor& padding_mask);
};
TORCH_MODULE(TokenNorm);

}  // namespace kktorch
