#pragma once
// Controls of Attention-BN: what else can be done to queries and keys before their product.
#include <torch/nn/module.h>

#include <utility>

namespace kktorch::primal_dual {

/// Variance floor of every normalisation in the experiments.
inline constexpr double kNormEps = 1e-5;

struct QueryKeyOptions {
  enum class Operands {
    kPlain,
    kKeysCentred,  ///< keys minus their mean: softmax does not see it
    kLayerNorm,    ///< of each query and key over its channels, with a gain per channel
    kRmsNorm       ///< likewise by the root mean square, without centring
  };
  Operands operands = Operands::kPlain;
  bool query_bias = false;  ///< a learned vector added to the query
};

/// Parameters: query_bias, zeros at first; query_gain and key_gain [D], ones at first.
class QueryKeyControl : public torch::nn::Module {
 public:
  /// @param bias_shape  of query_bias, e.g. [H, 1, D] for one per head; its last number is D.
  QueryKeyControl(QueryKeyOptions options, at::IntArrayRef bias_shape, at::ScalarType dtype);

  /// @param query [..., D]  @param keys [..., N, D]  @return both, of the same shapes
  std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& query, const at::Tensor& keys) const;

 private:
  QueryKeyOptions options_;
  at::Tensor query_bias_, query_gain_, key_gain_;
};

}  // namespace kktorch::primal_dual
