#pragma once
// Transformer encoder layer: attention and a two-layer feed-forward network, each with a residual.
#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "models/attention_bnsh.h"
#include "models/token_norm.h"

namespace kktorch {

/// Options of EncoderLayer.
struct EncoderLayerOptions {
  /// embed_dim is the layer's width; batch_first is implied. Its dropout, on the attention
  /// probabilities, is 0 by default, unlike nn.TransformerEncoderLayer's: the fused attention of
  /// the CPU has no dropout, so a positive value trains through materialised L x L probabilities.
  AttentionBNSHOptions attention;
  int64_t ffn = 0;                  ///< hidden width of the feed-forward network; required
  double dropout = 0.1;             ///< after attention, after the activation and after the network
  std::string norm = "layer";       ///< "layer", "batch" or "batch_masked", see TokenNorm
  bool norm_first = false;          ///< normalise the input of a branch, not the sum
  std::string activation = "gelu";  ///< "gelu" (exact) or "relu"
};

/// With branch = attention, then linear2(activation(linear1)):
///
///     x <- norm(x + branch(x))       or, with norm_first,       x <- x + branch(norm(x))
///
/// Submodules self_attn, linear1, linear2, norm1, norm2, named and initialised as in
/// nn.TransformerEncoderLayer, whose state dict loads (norm "layer").
/// @throws c10::ValueError  "EncoderLayer: expected <option>, but got <value>".
class EncoderLayerImpl : public torch::nn::Cloneable<EncoderLayerImpl> {
 public:
  explicit EncoderLayerImpl(const EncoderLayerOptions& options);

  void reset() override;

  /// @param x                 [B, L, width]. Padded tokens may hold any finite values.
  /// @param key_padding_mask  bool [B, L], True = padding.
  /// @param attn_mask, is_causal  as in AttentionBNSH.
  /// @return                  [B, L, width]; what stands in padded tokens is to be dropped.
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& key_padding_mask = {},
                        const torch::Tensor& attn_mask = {}, bool is_causal = false);

  /// The next tokens x_new [B, T, width] of sequences whose past is in `cache`, made by
  /// self_attn->make_cache(): AttentionBNSH::decode() in place of the causal attention. Evaluation
  /// mode only.
  torch::Tensor decode(const torch::Tensor& x_new, KVCache& cache,
                       const std::vector<int64_t>& valid = {});

  void pretty_print(std::ostream& stream) const override;

  EncoderLayerOptions options;
  AttentionBNSH self_attn{nullptr};
  torch::nn::Linear linear1{nullptr}, linear2{nullptr};
  TokenNorm norm1{nullptr}, norm2{nullptr};

 private:
  using Branch = std::function<torch::Tensor(const torch::Tensor&)>;
  torch::Tensor run(const torch::Tensor& x, const torch::Tensor& padding, const Branch& attention);
};
TORCH_MODULE(EncoderLayer);

/// "gelu" (exact) or "relu".
torch::Tensor activate(const torch::Tensor& x, const std::string& activation);

}  // namespace kktorch
