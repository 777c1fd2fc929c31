// The composition of ATen ops: any device, memory linear in the lengths. Default on CUDA,
// cross-check on the CPU.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "ops/attention/normalise.h"

namespace kktorch::detail {
namespace {

using at::Tensor;

/// [B, H, L, ...] as [B, Hk, G, L, ...]: query heads beside the key head they share.
Tensor grouped(const Tensor& t, const AttentionProblem& p) {
  return t.unflatten(1, {p.Hk(), p.H() / p.Hk()});
}

Tensor key_weights(const AttentionProblem& p) {  // [B, 1, N, 1], or undefined
  return p.key_weight.defined() ? p.key_weight.view({p.B(), 1, p.N(), 1}) : Tensor();
}

/// `t` where the key counts, 0 elsewhere, whatever it holds there.
Tensor live_only(const Tensor& t, const Tensor& weight) {
  return weight.defined() ? t.masked_fill(weight <= 0, 0) : t;
}

Tensor first_valid_key(const AttentionProblem& p, const Tensor& key) {  // [B, Hk, 1, D]
  if (!p.key_weight.defined()) return key.narrow(2, 0, 1);
  const auto first = (p.key_weight > 0).to(at::kByte).argmax(1).view({p.B(), 1, 1, 1});
  return live_only(key, key_weights(p)).gather(2, first.expand({p.B(), p.Hk(), 1, p.D()}));
}

/// Two or more valid keys. A single one has constant probability and no variance: r = 0 keeps its
/// gradients exactly 0.
Tensor several(const Tensor& weight) { return (weight > 0).sum(2, true) > 1; }

Tensor inverse_std(const Tensor& variance, const AttentionProblem& p) {
  if (!p.use_std) return variance.new_ones({}).expand_as(variance);
  const auto floor = variance + p.eps;
  return at::where(floor > 0, floor.rsqrt(), 0);
}

Tensor beta_of(const AttentionProblem& p) {  // [Hk, G, 1, 1]
  return p.beta.view({p.Hk(), p.H() / p.Hk(), 1, 1});
}

// ---- global statistics ----

struct Rows {
  Tensor shift, mean, rstd;  // [B, Hk, 1, D] each, views of the statistics tensor
};

Rows rows_of(const Tensor& statistics) {
  return {statistics.narrow(2, 0, 1), statistics.narrow(2, 1, 1), statistics.narrow(2, 2, 1)};
}

void measure(const AttentionProblem& p, const Tensor& key, const Rows& out) {
  const auto weight = key_weights(p);
  out.shift.copy_(first_valid_key(p, key));
  const auto x = live_only(key - out.shift, weight);
  if (!weight.defined()) {
    out.mean.copy_(x.mean(2, true));
    out.rstd.copy_(inverse_std((x - out.mean).square().mean(2, true), p) * (p.N() > 1));
    return;
  }
  const auto total = weight.sum(2, true), share = weight / total.masked_fill(total <= 0, 1);
  out.mean.copy_((share * x).sum(2, true));
  const auto variance = (share * (x - out.mean).square()).sum(2, true);
  out.rstd.copy_(inverse_std(variance, p) * several(weight));
}

NormalisedOperands global_operands(const AttentionProblem& p, const Tensor& key, const Rows& s) {
  const auto query = grouped(p.query.to(p.acc()), p);
  const auto per_group = [](const Tensor& t) { return t.unsqueeze(2); };
  const auto beta = beta_of(p);
  const auto q_hat =
      ((query - beta * per_group(s.shift)) - beta * per_group(s.mean)) * per_group(s.rstd);
  const auto c_hat = live_only(((key - s.shift) - s.mean) * s.rstd, key_weights(p));
  const auto dtype = p.query.scalar_type();
  return {q_hat.flatten(1, 2).to(dtype), c_hat.to(dtype)};
}

Tensor global_backward(const AttentionProblem& p, const NormalisedOperands& operands, const Rows& s,
                       Tensor& grad_query, Tensor& grad_key) {
  const auto g = grouped(grad_query.to(p.acc()), p);  // dq^
  const auto shift_sum = g.sum(3, true);              // A, [B, Hk, G, 1, D]
  const auto weight = key_weights(p);
  auto correction = (beta_of(p) * shift_sum).sum(2);
  if (p.use_std) {
    const auto scale_sum = (g * grouped(operands.query.to(p.acc()), p)).sum({2, 3}).unsqueeze(2);
    correction = correction + 2 * operands.key.to(p.acc()) * scale_sum;
  }
  const auto share = weight.defined() ? weight / weight.sum(2, true).clamp_min(1e-30) : Tensor();
  correction = share.defined() ? share * correction : correction / p.N();
  grad_key.copy_(live_only((grad_key.to(p.acc()) - correction) * s.rstd, weight));
  grad_query.copy_((g * s.rstd.unsqueeze(2)).flatten(1, 2));
  const auto mu_r = ((s.shift + s.mean) * s.rstd).unsqueeze(2);
  return -(mu_r * shift_sum).sum({0, 3, 4}).flatten();
}

// ---- prefix statistics ----

/// Per query: [B, Hk, 1, M, D] mean and scale, and the weight of the prefix [B, 1, 1, M, 1]. A
/// float64 cumulative sum of shifted keys keeps the digits that a float32 one would lose.
struct PrefixRows {
  Tensor mean, scale, n;
};

Tensor last_visible(const AttentionProblem& p) {  // [M]
  const auto i = at::arange(p.M(), p.beta.options().dtype(at::kLong)) + p.query_offset;
  return i.clamp_max(p.N() - 1);
}

PrefixRows prefix_rows(const AttentionProblem& p, const Tensor& x) {
  const auto weight = p.key_weight.defined() ? key_weights(p).to(at::kDouble)
                                             : x.new_ones({1, 1, p.N(), 1}).to(at::kDouble);
  const auto wide = x.to(at::kDouble), last = last_visible(p);
  const auto at_rows = [&](const Tensor& t) { return t.cumsum(2).index_select(2, last); };
  const auto n = at_rows(weight), safe_n = n.masked_fill(n <= 0, 1);
  const auto mean = at_rows(weight * wide) / safe_n;
  const auto variance = (at_rows(weight * wide.square()) / safe_n - mean.square()).clamp_min(0);
  const auto valid_keys = at_rows((weight > 0).to(at::kDouble));
  const auto scale = inverse_std(variance.to(p.acc()), p).square() * (valid_keys > 1);
  return {mean.to(p.acc()).unsqueeze(2), scale.to(p.acc()).unsqueeze(2),
          n.to(p.acc()).unsqueeze(2)};
}

Tensor shifted_keys(const AttentionProblem& p, const Rows& s) {
  return live_only(p.key.to(p.acc()) - s.shift, key_weights(p));
}

NormalisedOperands prefix_operands(const AttentionProblem& p, const Rows& s) {
  const auto x = shifted_keys(p, s);
  const auto rows = prefix_rows(p, x);
  const auto beta = beta_of(p), query = grouped(p.query.to(p.acc()), p);
  const auto q_tilde = ((query - beta * s.shift.unsqueeze(2)) - beta * rows.mean) * rows.scale;
  return {q_tilde.flatten(1, 2).to(p.query.scalar_type()), x.to(p.query.scalar_type())};
}

/// Sum over the rows i with p_i >= j, for every key j: [B, Hk, M, D] -> [B, Hk, N, D].
Tensor sum_of_later_rows(const Tensor& t, const AttentionProblem& p) {
  const auto suffix = t.flip(2).cumsum(2).flip(2);
  const auto j = at::arange(p.N(), p.beta.options().dtype(at::kLong)) - p.query_offset;
  const auto sums = suffix.index_select(2, j.clamp(0, p.M() - 1));
  return sums.masked_fill((j >= p.M()).view({-1, 1}), 0);
}

Tensor prefix_backward(const AttentionProblem& p, const NormalisedOperands& operands, const Rows& s,
                       Tensor& grad_query, Tensor& grad_key) {
  const auto x = shifted_keys(p, s);
  const auto rows = prefix_rows(p, x);
  const auto dq = grouped(grad_query.to(p.acc()), p) * rows.scale;
  const auto u = dq / rows.n.masked_fill(rows.n <= 0, 1);
  auto correction = sum_of_later_rows((beta_of(p) * u).sum(2), p);
  if (p.use_std) {
    const auto uq = u * grouped(operands.query.to(p.acc()), p);
    correction = correction + 2 * (x * sum_of_later_rows(uq.sum(2), p) -
                                   sum_of_later_rows((uq * rows.mean).sum(2), p));
  }
  const auto weight = key_weights(p);
  if (weight.defined()) correction = weight * correction;
  grad_key.copy_(live_only(grad_key.to(p.acc()) - correction, weight));
  grad_query.copy_(dq.flatten(1, 2));
  return -(dq * (s.shift.unsqueeze(2) + rows.mean)).sum({0, 3, 4}).flatten();
}

// ---- the interface ----

NormalisedOperands recompute(const AttentionProblem& p, const Tensor& statistics) {
  return p.prefix ? prefix_operands(p, rows_of(statistics))
                  : global_operands(p, p.key.to(p.acc()), rows_of(statistics));
}

NormalisedOperands forward(const AttentionProblem& p, Tensor& statistics) {
  statistics = at::zeros({p.B(), p.Hk(), 3, p.D()}, p.beta.options());
  const auto key = p.key.to(p.acc());
  if (p.prefix)
    rows_of(statistics).shift.copy_(first_valid_key(p, key));
  else
    measure(p, key, rows_of(statistics));
  return recompute(p, statistics);
}

Tensor backward(const AttentionProblem& p, const NormalisedOperands& operands,
                const Tensor& statistics, Tensor& grad_query, Tensor& grad_key) {
  return p.prefix ? prefix_backward(p, operands, rows_of(statistics), grad_query, grad_key)
                  : global_backward(p, operands, rows_of(statistics), grad_query, grad_key);
}

}  // namespace

const Normaliser& aten_normaliser() {
  static constexpr Normaliser normaliser{forward, recompute, backward};
  return normaliser;
}

}  // namespace kktorch::detail
