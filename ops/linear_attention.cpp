// linear_attention as a composition of differentiable ATen ops; nothing of size M x N is stored.
//
// Query heads stand beside the key head that they share: queries are [B, Hk, G, M, width], keys and
// values [B, Hk, 1, N, width], what belongs to the keys of a sample [B, 1, 1, N, 1]. The statistics
// are one row, or with causality one row per position, [B, Hk, 1, 1 or N, D].
#include "ops/linear_attention.h"

#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "ops/attention/problem.h"
#include "ops/common/registration.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr std::string_view kName = "linear_attention";
constexpr int64_t kLength = 3;  // the axis of tokens
constexpr int64_t kChunk = 32;  // causal: tokens whose products with each other are formed

void check_beta(const Tensor& key, const OptionalTensor& beta, double beta_value) {
  if (beta) {
    const auto Hk = key.sym_size(1);
    TORCH_CHECK(beta->is_floating_point() && beta->device() == key.device() &&
                    (beta->dim() == 0 ||
                     (beta->dim() == 1 && (beta->sym_size(0) == 1 || beta->sym_size(0) == Hk))),
                kName, ": expected beta floating of shape [], [1] or [", Hk, "], but got ",
                beta->scalar_type(), " ", beta->sym_sizes(), " on ", beta->device());
    TORCH_CHECK_VALUE(beta_value == 1.0, kName,
                      ": expected beta_value=1.0 when beta is given, but got ", beta_value);
  }
  TORCH_CHECK_VALUE(std::isfinite(beta_value), kName, ": expected a finite beta_value, but got ",
                    beta_value);
}

void check_form(const Tensor& query, const Tensor& key, std::string_view feature_map,
                bool is_causal) {
  TORCH_CHECK_VALUE(feature_map == "elu1", kName, ": expected feature_map 'elu1', but got '",
                    feature_map, "'");
  const auto M = query.sym_size(2), N = key.sym_size(2);
  TORCH_CHECK_VALUE(!is_causal || M == N, kName,
                    ": expected equal query and key lengths with is_causal=True, but got M=", M,
                    " and N=", N);
}

/// Smallest normal number: a floor that keeps 0/0 out.
double tiny(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? std::numeric_limits<double>::min()
                                        : std::numeric_limits<float>::min();
}

/// n_j, [B, 1, 1, N, 1].
Tensor weights_of_keys(const Tensor& k, const OptionalTensor& key_padding_mask,
                       const OptionalTensor& key_weight) {
  auto n = key_weight ? key_weight->to(k.scalar_type())
                      : at::ones_symint({k.sym_size(0), k.sym_size(kLength)}, k.options());
  if (key_padding_mask) n = n.masked_fill(*key_padding_mask, 0);
  return n.unsqueeze(1).unsqueeze(1).unsqueeze(-1);
}

/// The first valid row of `t` as a single row; 0 where none is valid.
Tensor first_valid(const Tensor& t, const Tensor& live) {
  const auto is_first = live.logical_and(live.cumsum(kLength) == 1);
  return at::where(is_first, t, 0).sum(kLength, true);
}

struct Statistics {
  Tensor shift;  // x0, the first valid key, a constant (detached on purpose)
  Tensor mean;   // of k - x0
  Tensor rstd;
};

Tensor reciprocal_deviation(const Tensor& variance, bool use_std, double eps) {
  if (!use_std) return at::ones_like(variance);
  const auto floored = variance + eps;
  return at::where(floored > 0, floored.clamp_min(tiny(floored)).rsqrt(), 0 * floored);
}

/// Statistics of all keys: two passes.
Statistics global_statistics(const Tensor& k, const Tensor& n, const Tensor& shift, bool use_std,
                             double eps) {
  const auto share = n / n.sum(kLength, true).clamp_min(tiny(n));
  const auto x = k - shift, mean = (share * x).sum(kLength, true);
  const auto variance = (share * (x - mean).square()).sum(kLength, true);
  return {shift, mean, reciprocal_deviation(variance, use_std, eps)};
}

/// Statistics of the keys up to each position: running sums of shifted keys, in float64 for the
/// digits that a sum of squares loses.
Statistics prefix_statistics(const Tensor& k, const Tensor& n, const Tensor& shift, bool use_std,
                             double eps) {
  const auto x = (k - shift).to(at::kDouble), weight = n.to(at::kDouble);
  const auto total = weight.cumsum(kLength).clamp_min(tiny(weight));
  const auto mean = (weight * x).cumsum(kLength) / total;
  const auto square = (weight * x.square()).cumsum(kLength) / total;
  const auto variance = (square - mean.square()).clamp_min(0).to(k.scalar_type());
  return {shift, mean.to(k.scalar_type()), reciprocal_deviation(variance, use_std, eps)};
}

/// (t - beta mu) r. In two steps: mu rounded to one number would lose digits that t shares with it.
Tensor normalised(const Tensor& t, const Statistics& s, const Tensor& beta) {
  return ((t - beta * s.shift) - beta * s.mean) * s.rstd;
}

/// elu(x) + 1, with all its digits where x is far below 0.
Tensor feature_map_elu1(const Tensor& x) { return at::where(x > 0, x + 1, x.clamp_max(0).exp()); }

/// sum_j (q_i . k_j) v_j over all keys.
Tensor sums_over_keys(const Tensor& q, const Tensor& k, const Tensor& v) {
  return at::matmul(q, at::matmul(k.transpose(-1, -2), v));
}

/// sum_j (q_i . k_j) v_j over the keys j <= i: earlier chunks by their accumulated k^T v, the
/// query's own chunk by its products. The chunks before one are summed without it: a difference of
/// sums would let the future in by rounding.
///
/// Written for compilers that know N by name only and have to prove every size. There are two
/// chunks at least: the axis of a single one would look like one that broadcasts, and longer
/// sequences would be refused. Chunks are cut by unfold and rows are taken by index, because
/// unflatten and narrow(0, N) ask for proofs about N modulo the chunk.
Tensor sums_over_earlier_keys(const Tensor& q, const Tensor& k, const Tensor& v) {
  const auto N = k.sym_size(kLength), chunks = ((N - 1) / (2 * kChunk) + 1) * 2;
  const auto cut = [&](const Tensor& t) {  // [B, Hk, G or 1, chunks, width, kChunk]
    return at::constant_pad_nd_symint(t, {0, 0, 0, chunks * kChunk - N})
        .unfold(kLength, kChunk, kChunk);
  };
  const auto queries = cut(q).mT(), keys = cut(k), values = cut(v).mT();
  const auto products = at::matmul(keys, values);  // [B, Hk, 1, chunks, D, width]
  const auto earlier = at::constant_pad_nd(products, {0, 0, 0, 0, 1, -1}).cumsum(kLength);
  const auto own = at::matmul(at::matmul(queries, keys).tril(), values);
  const auto sums = (at::matmul(queries, earlier) + own).flatten(kLength, kLength + 1);
  return sums.index_select(kLength, at::arange(N, q.options().dtype(at::kLong)));
}

/// Numerator / denominator for rows that see `count` keys. One key: its value, exactly, and no
/// gradient for query and key; but NaN in either shows. No key: 0.
Tensor quotient(const Tensor& numerator, const Tensor& denominator, const Tensor& count,
                const Tensor& first_value) {
  const auto floor = tiny(denominator);
  // No gradient where the denominator underflows: it would be infinity times zero.
  const auto ratio =
      at::where(denominator < floor, numerator.detach(), numerator) / denominator.clamp_min(floor);
  const auto is_mean = (count > 1).logical_or((count == 1).logical_and(denominator.isnan()));
  return at::where(is_mean, ratio, at::where(count > 0, first_value, 0));
}

Tensor linear_attention_composite(const Tensor& query, const Tensor& key, const Tensor& value,
                                  const OptionalTensor& beta,
                                  const OptionalTensor& key_padding_mask,
                                  const OptionalTensor& key_weight, bool bn, double beta_value,
                                  bool use_std, double eps, std::string_view feature_map,
                                  bool is_causal, bool enable_gqa) {
  detail::check_attention(kName, {query, key, value, std::nullopt, key_padding_mask, std::nullopt,
                                  key_weight, eps, 0.0, enable_gqa});
  check_beta(key, beta, beta_value);
  check_form(query, key, feature_map, is_causal);

  const auto acc = at::toOpMathType(query.scalar_type());
  const auto H = query.sym_size(1), Hk = key.sym_size(1), Dv = value.sym_size(3);
  auto q = query.to(acc).unflatten_symint(1, {Hk, H == Hk ? 1 : H / Hk});
  auto k = key.to(acc).unsqueeze(2);
  const auto n = weights_of_keys(k, key_padding_mask, key_weight);
  const auto live = n > 0, dead = live.logical_not();
  // Select, never multiply by zero: padding may hold NaN.
  k = k.masked_fill(dead, 0);
  const auto v = value.to(acc).unsqueeze(2).masked_fill(dead, 0);

  if (bn) {
    const auto shift = first_valid(k.detach(), live);
    const auto statistics = is_causal ? prefix_statistics(k, n, shift, use_std, eps)
                                      : global_statistics(k, n, shift, use_std, eps);
    const auto b = beta ? beta->to(acc).reshape({1, -1, 1, 1, 1})
                        : at::full({1, 1, 1, 1, 1}, beta_value, q.options());
    q = normalised(q, statistics, b);
    k = normalised(k, statistics, b);
  }
  const auto phi_q = feature_map_elu1(q);
  const auto phi_k = (n * feature_map_elu1(k)).masked_fill(dead, 0);
  // The denominator is the sum for one more value channel, of ones.
  const auto extended = at::constant_pad_nd(v, {0, 1}, 1);
  const auto sums = is_causal ? sums_over_earlier_keys(phi_q, phi_k, extended)
                              : sums_over_keys(phi_q, phi_k, extended);
  const auto count = is_causal ? live.cumsum(kLength) : live.sum(kLength, true);
  const auto out = quotient(sums.narrow_symint(-1, 0, Dv), sums.narrow_symint(-1, Dv, 1), count,
                            first_valid(v, live));
  // Stored (B, M, H, Dv), like the output of every attention op.
  return out.to(query.scalar_type()).flatten(1, 2).transpose(1, 2).contiguous().transpose(1, 2);
}

// ---- Autocast: sums over all keys run in float32, and stay there ----

template <c10::DeviceType device, c10::DispatchKey key_to_exclude>
Tensor linear_attention_autocast(const Tensor& query, const Tensor& key, const Tensor& value,
                                 const OptionalTensor& beta, const OptionalTensor& key_padding_mask,
                                 const OptionalTensor& key_weight, bool bn, double beta_value,
                                 bool use_std, double eps, std::string_view feature_map,
                                 bool is_causal, bool enable_gqa) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(key_to_exclude);
  const auto wide = [](const auto& t) { return at::autocast::cached_cast(at::kFloat, t, device); };
  return linear_attention(wide(query), wide(key), wide(value), wide(beta), key_padding_mask,
                          wide(key_weight), bn, beta_value, use_std, eps, feature_map, is_causal,
                          enable_gqa);
}

}  // namespace

Tensor linear_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                        const OptionalTensor& beta, const OptionalTensor& key_padding_mask,
                        const OptionalTensor& key_weight, bool bn, double beta_value, bool use_std,
                        double eps, std::string_view feature_map, bool is_causal, bool enable_gqa) {
  static const auto op = detail::op_handle<decltype(linear_attention)>("kktorch::linear_attention");
  return op.call(query, key, value, beta, key_padding_mask, key_weight, bn, beta_value, use_std,
                 eps, feature_map, is_causal, enable_gqa);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def(
      "linear_attention(Tensor query, Tensor key, Tensor value, Tensor? beta=None, "
      "Tensor? key_padding_mask=None, *, Tensor? key_weight=None, bool bn=True, "
      "float beta_value=1.0, bool use_std=True, float eps=1e-05, str feature_map=\"elu1\", "
      "bool is_causal=False, bool enable_gqa=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(kktorch, CompositeImplicitAutograd, m) {
  m.impl("linear_attention", &linear_attention_composite);
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCPU, m) {
  m.impl("linear_attention", &linear_attention_autocast<at::kCPU, c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCUDA, m) {
  m.impl("linear_attention", &linear_attention_autocast<at::kCUDA, c10::DispatchKey::AutocastCUDA>);
}

}  // namespace kktorch
