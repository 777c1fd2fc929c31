#include "models/token_norm.h"

#include <array>

#include "models/option_checks.h"

namespace kktorch {

using torch::Tensor;

TokenNormImpl::TokenNormImpl(std::string kind_, int64_t width_)
    : kind(std::move(kind_)), width(width_) {
  detail::check_choice("TokenNorm: expected kind", kind, {"layer", "batch", "batch_masked"});
  detail::check_positive("TokenNorm: expected width", width);
  TokenNormImpl::reset();
}

void TokenNormImpl::reset() {
  weight = register_parameter("weight", torch::ones({width}));
  bias = register_parameter("bias", torch::zeros({width}));
  if (kind == "layer") return;
  running_mean = register_buffer("running_mean", torch::zeros({width}));
  running_var = register_buffer("running_var", torch::ones({width}));
  num_batches_tracked = register_buffer("num_batches_tracked", torch::tensor(int64_t{0}));
}

Tensor TokenNormImpl::forward(const Tensor& x, const Tensor& padding_mask) {
  if (kind == "layer") return torch::layer_norm(x, {width}, weight, bias, kEps);
  if (is_training()) {
    num_batches_tracked += 1;
    if (kind == "batch_masked" && padding_mask.defined()) return masked_batch_norm(x, padding_mask);
  }
  const auto tokens = x.reshape({-1, width});
  return torch::batch_norm(tokens, weight, bias, running_mean, running_var, is_training(),
                           kMomentum, kEps, /*cudnn_enabled=*/true)
      .view_as(x);
}

// Sums over all tokens with the padded ones selected away, not over a gathered selection: shapes
// then depend on no data. In the dtype of the running averages, which autocast leaves alone.
Tensor TokenNormImpl::masked_batch_norm(const Tensor& x, const Tensor& padding_mask) {
  const std::array<int64_t, 2> over_tokens{0, 1};
  const auto padded = padding_mask.unsqueeze(-1);
  const auto count = padding_mask.logical_not().sum();
  const auto tokens = x.to(running_mean.dtype());
  const auto mean = tokens.masked_fill(padded, 0).sum(over_tokens) / count.clamp_min(1);
  const auto centred = tokens - mean;
  const auto squares = centred.masked_fill(padded, 0).square().sum(over_tokens);
  const auto variance = squares / count.clamp_min(1);
  {
    torch::NoGradGuard no_grad;  // as nn.BatchNorm1d: the running variance is the unbiased one
    running_mean.lerp_(mean, kMomentum);
    running_var.lerp_(squares / (count - 1).clamp_min(1), kMomentum);
  }
  return (centred * (variance + kEps).rsqrt() * weight + bias).to(x.dtype());
}

void TokenNormImpl::pretty_print(std::ostream& stream) const {
  stream << "kktorch::TokenNorm(kind=" << kind << ", width=" << width << ")";
}

}  // namespace kktorch
