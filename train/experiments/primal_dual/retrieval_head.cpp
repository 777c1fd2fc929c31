#include "train/experiments/primal_dual/retrieval_head.h"

#include <torch/torch.h>

#include <cmath>

#include "ops/attention_bn.h"

namespace kktorch::primal_dual {
namespace {

using Operands = RetrievalMethod::Operands;

at::Tensor over_root(const at::Tensor& x, const at::Tensor& square) {
  return x * (square + kRetrievalEps).rsqrt();
}

at::Tensor rms_norm(const at::Tensor& x) { return over_root(x, x.square().mean(-1, true)); }

at::Tensor layer_norm(const at::Tensor& x) {
  return over_root(x - x.mean(-1, true), x.var(-1, /*unbiased=*/false, /*keepdim=*/true));
}

}  // namespace

const std::vector<RetrievalMethod>& retrieval_methods() {
  static const std::vector<RetrievalMethod> methods = {
      {.name = "softmax", .title = "softmax"},
      {.name = "keys-centred",
       .title = "softmax, key mean off",
       .operands = Operands::kKeysCentred},
      {.name = "query-bias", .title = "softmax + query bias", .query_bias = true},
      {.name = "qk-layernorm", .title = "QK-LayerNorm", .operands = Operands::kLayerNorm},
      {.name = "qk-rmsnorm", .title = "QK-RMSNorm", .operands = Operands::kRmsNorm},
      {.name = "bn-0.5", .title = "BN β=0.5, no std", .beta = 0.5},
      {.name = "bn-1", .title = "BN β=1, no std", .beta = 1},
      {.name = "bn-learned", .title = "BN β learned, no std", .beta = 1, .learned_beta = true},
      {.name = "bn-0.5-std", .title = "BN β=0.5, std", .beta = 0.5, .use_std = true},
      {.name = "bn-1-std", .title = "BN β=1, std", .beta = 1, .use_std = true},
      {.name = "bn-learned-std",
       .title = "BN β learned, std",
       .beta = 1,
       .use_std = true,
       .learned_beta = true},
  };
  return methods;
}

RetrievalHead::RetrievalHead(RetrievalMethod method, int64_t width) : method_(std::move(method)) {
  query_map_ = register_parameter("query_map", torch::eye(width, torch::kDouble));
  key_map_ = register_parameter("key_map", torch::eye(width, torch::kDouble));
  if (method_.query_bias)
    query_bias_ = register_parameter("query_bias", torch::zeros(width, torch::kDouble));
  if (method_.operands == Operands::kLayerNorm || method_.operands == Operands::kRmsNorm) {
    query_gain_ = register_parameter("query_gain", torch::ones(width, torch::kDouble));
    key_gain_ = register_parameter("key_gain", torch::ones(width, torch::kDouble));
  }
  beta_ = torch::tensor(method_.beta, torch::kDouble);
  if (method_.learned_beta) beta_ = register_parameter("beta", beta_);
}

at::Tensor RetrievalHead::logits(const at::Tensor& query, const at::Tensor& keys) const {
  const auto [q, k] = operands(query, keys);
  const auto mean = k.mean(1, /*keepdim=*/true);  // [n, 1, D]
  auto left = q.unsqueeze(1) - beta_ * mean;
  if (method_.use_std)
    left = left / ((k - mean).square().mean(1, /*keepdim=*/true) + kRetrievalEps);
  const auto scale = 1 / std::sqrt(static_cast<double>(k.size(2)));
  return scale * torch::matmul(left, (k - beta_ * mean).transpose(1, 2)).squeeze(1);
}

at::Tensor RetrievalHead::probabilities(const at::Tensor& query, const at::Tensor& keys) const {
  const auto [q, k] = operands(query, keys);
  const auto n = k.size(0), count = k.size(1);
  const auto identity = torch::eye(count, torch::kDouble).expand({n, 1, count, count});
  const auto out = attention_bn(q.reshape({n, 1, 1, -1}), k.unsqueeze(1), identity, beta_, {}, {},
                                {}, /*beta_value=*/1.0, method_.use_std, kRetrievalEps);
  return out.reshape({n, count});
}

std::pair<at::Tensor, at::Tensor> RetrievalHead::operands(const at::Tensor& query,
                                                          const at::Tensor& keys) const {
  auto q = torch::matmul(query, query_map_.t()), k = torch::matmul(keys, key_map_.t());
  if (method_.query_bias) q = q + query_bias_;
  switch (method_.operands) {
    case Operands::kPlain:
      return {q, k};
    case Operands::kKeysCentred:
      return {q, k - k.mean(1, /*keepdim=*/true)};
    case Operands::kLayerNorm:
      return {query_gain_ * layer_norm(q), key_gain_ * layer_norm(k)};
    case Operands::kRmsNorm:
      return {query_gain_ * rms_norm(q), key_gain_ * rms_norm(k)};
  }
  return {};
}

}  // namespace kktorch::primal_dual
