#include "train/experiments/primal_dual/retrieval_head.h"

#include <torch/torch.h>

#include <cmath>

#include "ops/attention_bn.h"

namespace kktorch::primal_dual {
const std::vector<RetrievalMethod>& retrieval_methods() {
  using Operands = QueryKeyOptions::Operands;
  static const std::vector<RetrievalMethod> methods = {
      {.name = "softmax", .title = "softmax"},
      {.name = "keys-centred",
       .title = "softmax, key mean off",
       .control = {.operands = Operands::kKeysCentred}},
      {.name = "query-bias", .title = "softmax + query bias", .control = {.query_bias = true}},
      {.name = "qk-layernorm",
       .title = "QK-LayerNorm",
       .control = {.operands = Operands::kLayerNorm}},
      {.name = "qk-rmsnorm", .title = "QK-RMSNorm", .control = {.operands = Operands::kRmsNorm}},
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
  control_ = register_module(
      "control",
      std::make_shared<QueryKeyControl>(method_.control, at::IntArrayRef{width}, torch::kDouble));
  beta_ = torch::tensor(method_.beta, torch::kDouble);
  if (method_.learned_beta) beta_ = register_parameter("beta", beta_);
}

at::Tensor RetrievalHead::logits(const at::Tensor& query, const at::Tensor& keys) const {
  const auto [q, k] = operands(query, keys);
  const auto mean = k.mean(1, /*keepdim=*/true);  // [n, 1, D]
  auto left = q.unsqueeze(1) - beta_ * mean;
  if (method_.use_std) left = left / ((k - mean).square().mean(1, /*keepdim=*/true) + kNormEps);
  const auto scale = 1 / std::sqrt(static_cast<double>(k.size(2)));
  return scale * torch::matmul(left, (k - beta_ * mean).transpose(1, 2)).squeeze(1);
}

at::Tensor RetrievalHead::probabilities(const at::Tensor& query, const at::Tensor& keys) const {
  const auto [q, k] = operands(query, keys);
  const auto n = k.size(0), count = k.size(1);
  const auto identity = torch::eye(count, torch::kDouble).expand({n, 1, count, count});
  const auto out = attention_bn(q.reshape({n, 1, 1, -1}), k.unsqueeze(1), identity, beta_, {}, {},
                                {}, /*beta_value=*/1.0, method_.use_std, kNormEps);
  return out.reshape({n, count});
}

std::pair<at::Tensor, at::Tensor> RetrievalHead::operands(const at::Tensor& query,
                                                          const at::Tensor& keys) const {
  return control_->forward(torch::matmul(query, query_map_.t()), torch::matmul(keys, key_map_.t()));
}

}  // namespace kktorch::primal_dual
