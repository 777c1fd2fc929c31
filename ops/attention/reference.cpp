#include "ops/attention/reference.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <limits>

namespace kktorch::detail {
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

/// L without masks and weights, [B, H, M, N]. Letters of ops/attention_bn.h.
Tensor similarity(const ReferenceAttention& a) {
  const auto &q = a.query, &x0 = a.statistics.shift, &mean = a.statistics.mean,
             &rstd = a.statistics.rstd;
  const auto keys = a.keys.unsqueeze(2);  // [B, H, 1, N, D]
  const auto per_row = [](const Tensor& t) { return t.unsqueeze(3); };
  const auto centre = a.literal ? a.beta * (x0 + mean) : x0 + mean;
  const auto q_hat = a.literal ? (q - centre) * rstd : ((q - a.beta * x0) - a.beta * mean) * rstd;
  const auto k_hat = (a.literal ? keys - per_row(centre) : (keys - per_row(x0)) - per_row(mean)) *
                     per_row(rstd);  // [B, H, R, N, D]
  if (mean.sym_size(2) == 1) return at::matmul(q_hat, k_hat.squeeze(2).transpose(-1, -2));
  return at::matmul(q_hat.unsqueeze(3), k_hat.transpose(-1, -2)).squeeze(3);
}

}  // namespace

Tensor reference_attention(const ReferenceAttention& a) {
  const auto& n = a.weights;
  auto logits = similarity(a) * a.scale;
  logits = logits + at::where(n > 0, n.clamp_min(tiny(n)).log(), -kInfinity);
  if (a.mask.defined()) logits = logits + a.mask;
  // Rows that see nothing give 0, never NaN.
  const auto blind = logits.isneginf().all(-1, true);
  auto P = logits.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0);
  if (a.dropout_p > 0) P = at::dropout(P, a.dropout_p, true);
  return at::matmul(P, a.values);
}

Tensor repeat_heads(const Tensor& t, const c10::SymInt& H) {
  const auto Hk = t.sym_size(1);
  if (H == Hk) return t;
  return t.repeat_interleave_symint(H / Hk, 1);
}

Tensor weights_of_keys(const Tensor& k, const OptionalTensor& key_padding_mask,
                       const OptionalTensor& key_weight) {
  auto n = key_weight ? key_weight->to(k.scalar_type())
                      : at::ones_symint({k.sym_size(0), k.sym_size(2)}, k.options());
  if (key_padding_mask) n = n.masked_fill(*key_padding_mask, 0);
  return n.unsqueeze(1).unsqueeze(1);
}

Tensor keep_valid(const Tensor& t, const Tensor& weights) {
  return t.masked_fill((weights > 0).logical_not().transpose(-1, -2), 0);
}

Tensor first_valid_key(const Tensor& k, const Tensor& weights) {
  if (k.sym_size(2) == 0)
    return at::zeros_symint({k.sym_size(0), k.sym_size(1), 1, k.sym_size(3)}, k.options());
  const auto first =
      (weights > 0).squeeze(1).squeeze(1).to(at::kByte).argmax(1).view({-1, 1, 1, 1});
  return k.detach().gather(2,
                           first.expand_symint({k.sym_size(0), k.sym_size(1), 1, k.sym_size(3)}));
}

RowStatistics row_statistics(const Tensor& x, const Tensor& shift, const Tensor& w, double eps,
                             bool use_std) {
  const auto total = w.sum(-1, true);  // [.., R, 1]
  // With a single key the softmax is constant and sigma is 0: r = 0 keeps its gradients exactly 0.
  const auto several = (w > 0).sum(-1, true) > 1;
  const auto share = w / total.clamp_min(tiny(x));
  const auto mean = at::matmul(share, x);
  if (!use_std) return {shift, mean, several.to(x.scalar_type()).expand_as(mean)};
  const auto c = x.unsqueeze(2) - mean.unsqueeze(3);  // [B, H, R, N, D]
  const auto floor = (share.unsqueeze(-1) * c * c).sum(3) + eps;
  const auto rstd =
      at::where((floor > 0).logical_and(several), floor.clamp_min(tiny(x)).rsqrt(), 0 * floor);
  return {shift, mean, rstd};
}

Tensor reference_beta(const OptionalTensor& beta, double beta_value, const Tensor& like) {
  return beta ? beta->to(like.scalar_type()).reshape({1, -1, 1, 1})
              : at::full({1, 1, 1, 1}, beta_value, like.options());
}

Tensor forbid_unless(const Tensor& allowed, const Tensor& like) {
  return at::where(allowed, at::scalar_tensor(0, like.options()),
                   at::scalar_tensor(-kInfinity, like.options()));
}

Tensor causal_visibility(const c10::SymInt& M, const c10::SymInt& N,
                         const c10::SymInt& query_offset, const at::TensorOptions& options) {
  const auto positions = options.dtype(at::kLong);
  const auto i = at::arange(M, positions).unsqueeze(1) + at::Scalar(query_offset);
  return at::arange(N, positions).unsqueeze(0) <= i;
}

Tensor stored_heads_last(const Tensor& t) { return t.transpose(1, 2).contiguous().transpose(1, 2); }

}  // namespace kktorch::detail
