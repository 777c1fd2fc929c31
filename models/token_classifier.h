#pragma once
// A transformer encoder that classifies sequences of tokens of different lengths.
#include <torch/torch.h>

#include "models/encoder.h"

namespace kktorch {

/// Options of TokenClassifier. vocabulary, classes and max_length are required.
struct TokenClassifierOptions {
  int64_t vocabulary = 0;    ///< V: token ids are 0 ... V - 1
  int64_t classes = 0;       ///< K
  int64_t max_length = 0;    ///< longest sequence
  int64_t head_width = 128;  ///< hidden width of the head
  EncoderOptions encoder = {.norm = "layer"};
};

/// Token ids [B, L] to logits [B, K]:
///
///     h = encoder(embedding(ids))
///     logits = head(relu(hidden(mean of h over the valid tokens)))
///
/// Parameters: embedding (Embedding V x width), encoder (Encoder, with learned positions), hidden
/// (Linear width -> head_width), head (Linear head_width -> K). Initial values are those of
/// torch.nn and Encoder, drawn in this order. A seed gives the same model in C++ and in Python.
/// @throws c10::ValueError  "TokenClassifier: expected <option>, but got <value>".
class TokenClassifierImpl : public torch::nn::Cloneable<TokenClassifierImpl> {
 public:
  explicit TokenClassifierImpl(const TokenClassifierOptions& options);

  void reset() override;

  /// @param ids           int64 [B, L], 1 <= L <= max_length. The check of their values waits for
  ///                      the device.
  /// @param padding_mask  bool [B, L], True = padding, which may hold anything. Every sequence
  ///                      needs a valid token.
  /// @return              logits [B, classes].
  /// @throws c10::Error   "TokenClassifier: expected <what>, but got <values>".
  torch::Tensor forward(const torch::Tensor& ids, const torch::Tensor& padding_mask = {});

  void pretty_print(std::ostream& stream) const override;

  TokenClassifierOptions options;
  torch::nn::Embedding embedding{nullptr};
  Encoder encoder{nullptr};
  torch::nn::Linear hidden{nullptr}, head{nullptr};
};
TORCH_MODULE(TokenClassifier);

}  // namespace kktorch
