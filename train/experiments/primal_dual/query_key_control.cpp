#include "train/experiments/primal_dual/query_key_control.h"

#include <torch/torch.h>

namespace kktorch::primal_dual {
namespace {

using Operands = QueryKeyOptions::Operands;

at::Tensor over_root(const at::Tensor& x, const at::Tensor& square) {
  return x * (square + kNormEps).rsqrt();
}

at::Tensor rms_norm(const at::Tensor& x) { return over_root(x, x.square().mean(-1, true)); }

at::Tensor layer_norm(const at::Tensor& x) {
  return over_root(x - x.mean(-1, true), x.var(-1, /*unbiased=*/false, /*keepdim=*/true));
}

}  // namespace

QueryKeyControl::QueryKeyControl(QueryKeyOptions options, at::IntArrayRef bias_shape,
                                 at::ScalarType dtype)
    : options_(options) {
  if (options_.query_bias)
    query_bias_ = register_parameter("query_bias", torch::zeros(bias_shape, dtype));
  if (options_.operands == Operands::kLayerNorm || options_.operands == Operands::kRmsNorm) {
    query_gain_ = register_parameter("query_gain", torch::ones(bias_shape.back(), dtype));
    key_gain_ = register_parameter("key_gain", torch::ones(bias_shape.back(), dtype));
  }
}

std::pair<at::Tensor, at::Tensor> QueryKeyControl::forward(const at::Tensor& query,
                                                           const at::Tensor& keys) const {
  const auto q = options_.query_bias ? query + query_bias_ : query;
  switch (options_.operands) {
    case Operands::kPlain:
      return {q, keys};
    case Operands::kKeysCentred:
      return {q, keys - keys.mean(-2, /*keepdim=*/true)};
    case Operands::kLayerNorm:
      return {query_gain_ * layer_norm(q), key_gain_ * layer_norm(keys)};
    case Operands::kRmsNorm:
      return {query_gain_ * rms_norm(q), key_gain_ * rms_norm(keys)};
  }
  return {};
}

}  // namespace kktorch::primal_dual
