// attention_bn as a composition of differentiable ATen ops: the executable specification, and the
// path of everything that needs the M x N probabilities (mask gradients, statistics over a row's
// support, dropout on the CPU).
//
// Each row i has weights w_ij of the keys in its statistics; one formula serves all modes, because
// weights shared by all rows are a single row that broadcasts (R = 1), and per-row statistics are R
// = M rows.
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "ops/attention/problem.h"
#include "ops/attention_bn.h"
#include "ops/common/registration.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Smallest normal number of the accumulation type: a floor that keeps 0/0 and log 0 out of unused
/// branches.
double tiny(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? std::numeric_limits<double>::min()
                                        : std::numeric_limits<float>::min();
}

Tensor repeat_heads(const Tensor& t, const c10::SymInt& H) {
  const auto Hk = t.sym_size(1);
  if (H == Hk) return t;
  return t.repeat_interleave_symint(H / Hk, 1);
}

/// n_j, [B, 1, 1, N].
Tensor weights_of_keys(const Tensor& k, const OptionalTensor& key_padding_mask,
                       const OptionalTensor& key_weight) {
  auto n = key_weight ? key_weight->to(k.scalar_type())
                      : at::ones_symint({k.sym_size(0), k.sym_size(2)}, k.options());
  if (key_padding_mask) n = n.masked_fill(*key_padding_mask, 0);
  return n.unsqueeze(1).unsqueeze(1);
}

/// True where query i may see key j as far as positions go, [M, N].
Tensor causal_mask(const Tensor& q, const Tensor& k, const c10::SymInt& query_offset) {
  const auto options = q.options().dtype(at::kLong);
  const auto i = at::arange(q.sym_size(2), options).unsqueeze(1) + at::Scalar(query_offset);
  return at::arange(k.sym_size(2), options).unsqueeze(0) <= i;
}

/// The additive form of attn_mask and causality; undefined where there is neither.
Tensor additive_mask(const Tensor& q, const Tensor& k, const OptionalTensor& attn_mask,
                     bool is_causal, const c10::SymInt& query_offset) {
  Tensor mask;
  const auto forbid = [&](const Tensor& allowed) {
    return at::where(allowed, at::scalar_tensor(0, q.options()),
                     at::scalar_tensor(-kInfinity, q.options()));
  };
  if (attn_mask)
    mask =
        attn_mask->scalar_type() == at::kBool ? forbid(*attn_mask) : attn_mask->to(q.scalar_type());
  if (is_causal) {
    const auto causal = forbid(causal_mask(q, k, query_offset));
    mask = mask.defined() ? mask + causal : causal;
  }
  return mask;
}

/// Weights of the keys in the statistics: [B, 1, 1, N], or one row per query.
Tensor statistics_weights(const Tensor& n, const Tensor& q, const Tensor& k, const Tensor& mask,
                          std::string_view stats, const c10::SymInt& query_offset) {
  if (stats == "prefix") return n * causal_mask(q, k, query_offset);
  if (stats == "support" && mask.defined()) return n * mask.isneginf().logical_not();
  return n;
}

/// The first valid key, a constant shift (detached on purpose): [B, Hk, 1, D].
Tensor first_valid_key(const Tensor& k, const Tensor& live) {
  if (k.sym_size(2) == 0)
    return at::zeros_symint({k.sym_size(0), k.sym_size(1), 1, k.sym_size(3)}, k.options());
  const auto first = live.squeeze(1).squeeze(1).to(at::kByte).argmax(1).view({-1, 1, 1, 1});
  return k.detach().gather(2,
                           first.expand_symint({k.sym_size(0), k.sym_size(1), 1, k.sym_size(3)}));
}

struct RowStatistics {
  Tensor mean;  // [B, H, R, D], of k - x0
  Tensor rstd;  // [B, H, R, D]
};

/// x [B, H, N, D], w broadcastable to [B, H, R, N].
RowStatistics row_statistics(const Tensor& x, const Tensor& w, double eps, bool use_std) {
  const auto total = w.sum(-1, true);  // [.., R, 1]
  // With a single key the softmax is constant and sigma is 0: r = 0 keeps its gradients exactly 0.
  const auto several = (w > 0).sum(-1, true) > 1;
  const auto share = w / total.clamp_min(tiny(x));
  const auto mean = at::matmul(share, x);
  if (!use_std) return {mean, several.to(x.scalar_type()).expand_as(mean)};
  const auto c = x.unsqueeze(2) - mean.unsqueeze(3);  // [B, H, R, N, D]
  const auto floor = (share.unsqueeze(-1) * c * c).sum(3) + eps;
  const auto rstd =
      at::where((floor > 0).logical_and(several), floor.clamp_min(tiny(x)).rsqrt(), 0 * floor);
  return {mean, rstd};
}

/// L without masks and weights, [B, H, M, N]. Letters of attention_bn.h; beta [1, H, 1, 1].
Tensor similarity(const Tensor& q, const Tensor& k, const Tensor& x0, const RowStatistics& s,
                  const Tensor& beta, bool literal) {
  const auto keys = k.unsqueeze(2);  // [B, H, 1, N, D]
  const auto per_row = [](const Tensor& t) { return t.unsqueeze(3); };
  const auto centre = literal ? beta * (x0 + s.mean) : x0 + s.mean;
  const auto q_hat = literal ? (q - centre) * s.rstd : ((q - beta * x0) - beta * s.mean) * s.rstd;
  const auto k_hat = (literal ? keys - per_row(centre) : (keys - per_row(x0)) - per_row(s.mean)) *
                     per_row(s.rstd);  // [B, H, R, N, D]
  if (s.mean.sym_size(2) == 1) return at::matmul(q_hat, k_hat.squeeze(2).transpose(-1, -2));
  return at::matmul(q_hat.unsqueeze(3), k_hat.transpose(-1, -2)).squeeze(3);
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
  const auto n = weights_of_keys(key.to(acc), key_padding_mask, key_weight);  // [B, 1, 1, N]
  const auto live = n > 0, dead = live.logical_not().transpose(-1, -2);       // dead: [B, 1, N, 1]
  // Select, never multiply by zero: padding may hold NaN.
  const auto k = key.to(acc).masked_fill(dead, 0), v = value.to(acc).masked_fill(dead, 0);
  const auto x0 = repeat_heads(first_valid_key(k, live), H);
  const auto keys = repeat_heads(k, H), values = repeat_heads(v, H);
  const auto b =
      beta ? beta->to(acc).reshape({1, -1, 1, 1}) : at::full({1, 1, 1, 1}, beta_value, q.options());

  const auto mask = additive_mask(q, keys, attn_mask, is_causal, settled.query_offset);
  const auto w = statistics_weights(n, q, keys, mask, settled.stats, settled.query_offset);
  const auto statistics = row_statistics(keys - x0, w, eps, use_std);
  auto logits = similarity(q, keys, x0, statistics, b, literal) * settled.scale;
  logits = logits + at::where(live, n.clamp_min(tiny(n)).log(), -kInfinity);
  if (mask.defined()) logits = logits + mask;

  // Rows that see nothing give 0, never NaN.
  const auto blind = logits.isneginf().all(-1, true);
  auto P = logits.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0);
  if (dropout_p > 0) P = at::dropout(P, dropout_p, true);
  // Stored (B, M, H, Dv), like the output of the fused path.
  return at::matmul(P, values).to(query.scalar_type()).transpose(1, 2).contiguous().transpose(1, 2);
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
