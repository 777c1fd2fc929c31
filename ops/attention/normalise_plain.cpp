// No normalisation: beta 0 without division is ordinary softmax attention, on the queries and keys
// as they are.
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include "ops/attention/normalise.h"

namespace kktorch::detail {
namespace {

using at::Tensor;

/// 1 for samples with at least two valid keys, else 0, [B, 1, 1, 1]: the softmax of one key is
/// constant, and a query of 0 keeps its gradients exactly 0. Undefined where it would be 1
/// throughout (on a GPU only the number of keys is looked at: no synchronisation).
Tensor several_keys(const AttentionProblem& p) {
  if (!p.key_weight.defined()) return p.N() > 1 ? Tensor() : at::zeros({1}, p.query.options());
  const auto several = p.key_weight.gt(0).sum(1).gt(1);
  if (several.is_cpu() && several.all().item<bool>()) return {};
  return several.to(p.query.scalar_type()).view({-1, 1, 1, 1});
}

NormalisedOperands recompute(const AttentionProblem& p, const Tensor&) {
  const auto factor = several_keys(p);
  const auto key = p.key_weight.defined()
                       ? p.key.masked_fill((p.key_weight == 0).view({p.B(), 1, p.N(), 1}), 0)
                       : p.key;
  return {factor.defined() ? p.query * factor : p.query, key};
}

NormalisedOperands forward(const AttentionProblem& p, Tensor& statistics) {
  statistics = at::zeros({p.B(), p.Hk(), 3, p.D()}, p.beta.options());
  return recompute(p, statistics);
}

Tensor backward(const AttentionProblem& p, const NormalisedOperands&, const Tensor&,
                Tensor& grad_query, Tensor&) {
  const auto factor = several_keys(p);
  if (factor.defined()) grad_query.mul_(factor);
  return at::zeros({p.H()}, p.beta.options());
}

}  // namespace

const Normaliser& plain_normaliser() {
  static constexpr Normaliser normaliser{forward, recompute, backward};
  return normaliser;
}

}  // namespace kktorch::detail
