// attention_bn as a composition of differentiable ATen ops: the executable specification, and the
// path of everything that needs the M x N probabilities (mask gradients, statistics over a row's
// support, dropout on the CPU). Its pieces: ops/attention/reference.h.
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "ops/attention/problem.h"
#include "ops/attention/reference.h"
#include "ops/attention_bn.h"
#include "ops/common/registration.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

/// The additive form of attn_mask and causality; undefined where there is neither.
Tensor additive_mask(const Tensor& q, const OptionalTensor& attn_mask,
                     const OptionalTensor& causal) {
  Tensor mask;
  if (attn_mask)
    mask = attn_mask->scalar_type() == at::kBool ? detail::forbid_unless(*attn_mask, q)
                                                 : attn_mask->to(q.scalar_type());
  if (causal) {
    const auto future = detail::forbid_unless(*causal, q);
    mask = mask.defined() ? mask + future : future;
  }
  return mask;
}

/// Weights of the keys in the statistics: [B, 1, 1, N], or one row per query.
Tensor statistics_weights(const Tensor& n, const Tensor& mask, const OptionalTensor& causal,
                          std::string_view stats) {
  if (stats == "prefix") return n * *causal;
  if (stats == "support" && mask.defined()) return n * mask.isneginf().logical_not();
  return n;
}

Tensor attention_bn_ref_composite(const Tensor& query, const Tensor& key, const Tensor& value,
                                  const OptionalTensor& beta,
                                  const OptionalTensor& key_padding_mask,
                                  const OptionalTensor& attn_mask, const OptionalTensor& key_weight,
                                  double beta_value, bool use_std, double eps,
                                  std::string_view stats, bool is_causal,
                                  std::optional<c10::SymInt> query_offset, double dropout_p,
                                  std::optional<double> scale, bool enable_gqa, bool literal) {
  const auto settled = detail::settle_attention("attention_bn_ref",
                                                {query, key, value, beta, key_padding_mask,
                                                 attn_mask, key_weight, eps, dropout_p, enable_gqa},
                                                beta_value, stats, is_causal, query_offset, scale);
  const auto acc = at::toOpMathType(query.scalar_type());
  const auto H = query.sym_size(1);
  const auto q = query.to(acc);
  const auto n = detail::weights_of_keys(key.to(acc), key_padding_mask, key_weight);
  const auto k = detail::keep_valid(key.to(acc), n);
  const auto keys = detail::repeat_heads(k, H);
  const auto x0 = detail::repeat_heads(detail::first_valid_key(k, n), H);
  OptionalTensor causal;
  if (is_causal)
    causal =
        detail::causal_visibility(q.sym_size(2), k.sym_size(2), settled.query_offset, q.options());
  const auto mask = additive_mask(q, attn_mask, causal);
  const auto w = statistics_weights(n, mask, causal, settled.stats);
  const auto out = detail::reference_attention(
      {.query = q,
       .keys = keys,
       .values = detail::repeat_heads(detail::keep_valid(value.to(acc), n), H),
       .weights = n,
       .mask = mask,
       .statistics = detail::row_statistics(keys - x0, x0, w, eps, use_std),
       .beta = detail::reference_beta(beta, beta_value, q),
       .scale = settled.scale,
       .dropout_p = dropout_p,
       .literal = literal});
  return detail::stored_heads_last(out.to(query.scalar_type()));
}

}  // namespace

Tensor attention_bn_ref(const Tensor& query, const Tensor& key, const Tensor& value,
                        const OptionalTensor& beta, const OptionalTensor& key_padding_mask,
                        const OptionalTensor& attn_mask, const OptionalTensor& key_weight,
                        double beta_value, bool use_std, double eps, std::string_view stats,
                        bool is_causal, std::optional<c10::SymInt> query_offset, double dropout_p,
                        std::optional<double> scale, bool enable_gqa, bool literal) {
  static const auto op = detail::op_handle<decltype(attention_bn_ref)>("kktorch::attention_bn_ref");
  return op.call(query, key, value, beta, key_padding_mask, attn_mask, key_weight, beta_value,
                 use_std, eps, stats, is_causal, query_offset, dropout_p, scale, enable_gqa,
                 literal);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def(
      "attention_bn_ref(Tensor query, Tensor key, Tensor value, Tensor? beta=None, "
      "Tensor? key_padding_mask=None, Tensor? attn_mask=None, *, Tensor? key_weight=None, "
      "float beta_value=1.0, bool use_std=True, float eps=1e-05, str stats=\"auto\", "
      "bool is_causal=False, SymInt? query_offset=None, float dropout_p=0.0, float? scale=None, "
      "bool enable_gqa=False, bool literal=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(kktorch, CompositeImplicitAutograd, m) {
  m.impl("attention_bn_ref", &attention_bn_ref_composite);
}

}  // namespace kktorch
