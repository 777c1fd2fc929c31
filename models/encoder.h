#pragma once
// The encoder that the classifiers share: learned positions and a stack of encoder layers.
#include <torch/torch.h>

#include <string>
#include <vector>

#include "models/encoder_layer.h"

namespace kktorch {

/// What a user chooses about the encoder of a model.
struct EncoderOptions {
  int64_t width = 128;
  int64_t heads = 8;
  int64_t ffn = 256;  ///< hidden width of the feed-forward networks
  int64_t layers = 3;
  double dropout = 0.1;             ///< after the positions and in the layers
  double attention_dropout = 0.0;   ///< see EncoderLayerOptions::attention
  std::string norm = "batch";       ///< "layer", "batch" or "batch_masked", see TokenNorm
  bool norm_first = false;          ///< see EncoderLayer
  std::string activation = "gelu";  ///< "gelu" or "relu"
  std::string attention = "bn";     ///< AttentionBNSHOptions::variant
  std::string beta_mode = "fixed";  ///< this and what follows: see AttentionBNSHOptions
  double beta_init = 1.0;
  bool use_std = true;
  double eps = 1e-5;
  std::vector<int64_t> scales = {};
  std::string tail = "ceil";
  bool count_weighting = false;
  std::string conv = "none";
};

/// What a model decides about its tokens.
struct TokenLayout {
  int64_t length = 0;        ///< of the longest sequence
  int64_t num_special = 0;   ///< this and what follows: see AttentionBNSHOptions
  int64_t conv_columns = 0;  ///< 0: the tokens are no grid, and conv "2d" is refused
  bool stats_mask = true;
};

/// Tokens x [B, L, width] to tokens of the same shape: layers(dropout(x + position)), in one pass
/// or, causally, chunk by chunk.
///
/// Parameters: position [length, width], initially uniform in [-0.02, 0.02]; layers.<i>
/// (EncoderLayer). Initial values are drawn in this order.
/// @throws c10::ValueError  "Encoder: expected <option>, but got <value>".
class EncoderImpl : public torch::nn::Cloneable<EncoderImpl> {
 public:
  EncoderImpl(const EncoderOptions& options, const TokenLayout& layout);

  void reset() override;

  /// @param x             [B, L, width], L <= length. Padded tokens may hold any finite values.
  /// @param padding_mask  bool [B, L], True = padding.
  /// @param is_causal     a token sees none behind it, see AttentionBNSH.
  /// @return              [B, L, width]; what stands in padded tokens is to be dropped.
  /// @throws c10::Error   "Encoder: expected x [B, L <= {length}, {width}], but got {sizes}".
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& padding_mask = {},
                        bool is_causal = false);

  /// Empty caches, one per layer, for `batch` sequences of up to `capacity` <= length tokens.
  std::vector<KVCache> make_caches(int64_t batch, int64_t capacity) const;

  /// The next T >= 1 tokens x_new [B, T, width] of every sequence: the rows that the causal forward
  /// of all tokens up to now gives for them. Evaluation mode only; variants of
  /// AttentionBNSH::decode.
  ///
  /// @param caches  of make_caches(); the tokens are added.
  /// @param valid   see AttentionBNSH::decode.
  /// @return        [B, T, width].
  /// @throws c10::Error  "Encoder: expected <what>, but got <values>"; what AttentionBNSH::decode
  ///     throws, and then no cache has changed.
  torch::Tensor decode(const torch::Tensor& x_new, std::vector<KVCache>& caches,
                       const std::vector<int64_t>& valid = {});

  void pretty_print(std::ostream& stream) const override;

  EncoderOptions options;
  TokenLayout layout;
  torch::Tensor position;
  torch::nn::ModuleList layers{nullptr};
};
TORCH_MODULE(Encoder);

}  // namespace kktorch
