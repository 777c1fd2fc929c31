// attention_sh as a composition of differentiable ATen ops: the executable specification, and the
// path of causal attention with masks, offsets or dropout. Its pieces: ops/attention/reference.h.
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "csrc/attention/token_pool.h"
#include "ops/attention/head_groups.h"
#include "ops/attention/reference.h"
#include "ops/attention_sh.h"
#include "ops/common/registration.h"

namespace kktorch {
namespace {

using at::Tensor;
using detail::HeadGroup;
using OptionalTensor = std::optional<Tensor>;

/// Options that all heads share.
struct Settings {
  bool bn, count_weighting, drop_tail, is_causal, use_std, literal;
  c10::SymInt num_special, query_offset;
  double beta_value, eps, dropout_p, scale;
};

/// Window of every token of N, [N].
Tensor window_of_token(const c10::SymInt& N, int64_t scale, const Settings& s,
                       const at::TensorOptions& options) {
  const auto j = at::arange(N, options.dtype(at::kLong));
  const auto P = at::Scalar(s.num_special);
  return at::where(j < P, j, (j - P).floor_divide(scale) + P);
}

/// What the heads of one scale attend to: [B, H, N', D], [B, H, N', Dv], [B, 1, 1, N'], and
/// visibility, broadcastable to [B, H, M, N'], or undefined.
struct Attended {
  Tensor keys, values, weights, visible;
};

/// The windows: means of valid tokens. k, v [B, H, N, width], n [B, 1, 1, N].
Attended windows(const Tensor& k, const Tensor& v, const Tensor& n, const OptionalTensor& mask,
                 int64_t scale, const Settings& s) {
  const auto N = k.sym_size(2);
  const auto count = csrc::window_count<c10::SymInt>(N, scale, s.num_special, s.drop_tail);
  const auto owner = window_of_token(N, scale, s, k.options());
  const auto w = at::arange(count, owner.options()).unsqueeze(1);
  const auto member = (owner == w).to(k.scalar_type()) * n;  // [B, 1, Nw, N]
  const auto valid = member.sum(-1, true);                   // [B, 1, Nw, 1]
  const auto mean = member / valid.clamp_min(1);
  const auto weight = s.count_weighting ? valid : (valid > 0).to(k.scalar_type());
  Attended result{at::matmul(mean, k), at::matmul(mean, v), weight.transpose(-1, -2), {}};
  if (mask)  // all valid tokens must be visible
    result.visible =
        at::matmul(mask->logical_not().to(k.scalar_type()), member.transpose(-1, -2)) == 0;
  return result;
}

/// Causal: the windows of the past, then the tokens, of which a query sees the special
/// ones and those of its own window.
Attended past_and_own_window(const Tensor& k, const Tensor& v, const Tensor& n,
                             const OptionalTensor& mask, const c10::SymInt& M, int64_t scale,
                             const Settings& s) {
  const auto N = k.sym_size(2);
  const auto past = windows(k, v, n, mask, scale, s);
  const auto P = at::Scalar(s.num_special);
  const auto options = k.options().dtype(at::kLong);
  const auto p = (at::arange(M, options) + at::Scalar(s.query_offset)).unsqueeze(1);
  const auto own = at::where(p < P, p, (p - P).floor_divide(scale) + P);  // window of query p
  const auto j = at::arange(N, options);
  const auto w = at::arange(past.keys.sym_size(2), options);
  const auto owner = window_of_token(N, scale, s, k.options());
  // Special tokens are seen as tokens, not as windows.
  auto sees_window = (w >= P).logical_and(w < own);
  auto sees_token = (j <= p).logical_and((j < P).logical_or(owner == own));
  if (mask) {
    sees_window = sees_window.logical_and(past.visible);
    sees_token = sees_token.logical_and(*mask);
    sees_window = sees_window.expand_symint({sees_window.sym_size(0),
                                             sees_token.dim() == 4 ? sees_token.sym_size(1) : 1, M,
                                             past.keys.sym_size(2)});
    if (sees_token.dim() == 2) sees_token = sees_token.unsqueeze(0).unsqueeze(0);
    sees_token = sees_token.expand_symint({sees_window.sym_size(0), sees_window.sym_size(1), M, N});
  }
  return {at::cat({past.keys, k}, 2), at::cat({past.values, v}, 2), at::cat({past.weights, n}, -1),
          at::cat({sees_window, sees_token}, -1)};
}

detail::RowStatistics statistics_of(const Tensor& q, const Tensor& k, const Tensor& n,
                                    const Attended& attended, const Settings& s) {
  // Not causal: those of the windows. Causal: those of the tokens up to the query.
  const auto& keys = s.is_causal ? k : attended.keys;
  const auto& weights = s.is_causal ? n : attended.weights;
  const auto x0 = detail::first_valid_key(keys, weights);
  if (!s.bn) return {at::zeros_like(x0), at::zeros_like(x0), at::ones_like(x0)};
  const auto w = s.is_causal ? weights * detail::causal_visibility(q.sym_size(2), k.sym_size(2),
                                                                   s.query_offset, q.options())
                             : weights;
  return detail::row_statistics(keys - x0, x0, w, s.eps, s.use_std);
}

Tensor attend_group(const HeadGroup& g, const OptionalTensor& padding, const Settings& s) {
  const auto acc = at::toOpMathType(g.query.scalar_type());
  const auto H = g.query.sym_size(1);
  const auto q = g.query.to(acc);
  const auto n = detail::weights_of_keys(g.key.to(acc), padding, {});
  const auto k = detail::repeat_heads(detail::keep_valid(g.key.to(acc), n), H);
  const auto v = detail::repeat_heads(detail::keep_valid(g.value.to(acc), n), H);
  // Scale 1: every window is its token, and a floating mask is possible.
  const bool floating = g.attn_mask && g.attn_mask->scalar_type() != at::kBool;
  const auto mask = floating ? OptionalTensor() : g.attn_mask;
  const auto attended = s.is_causal ? past_and_own_window(k, v, n, mask, q.sym_size(2), g.scale, s)
                                    : windows(k, v, n, mask, g.scale, s);
  Tensor bias;
  if (attended.visible.defined()) bias = detail::forbid_unless(attended.visible, q);
  if (floating) {
    // Causal with scale 1: windows of the past stand for their token.
    auto tokens = g.attn_mask->to(acc);
    if (s.is_causal) tokens = at::cat({tokens, tokens}, -1);
    bias = bias.defined() ? bias + tokens : tokens;
  }
  const auto out =
      detail::reference_attention({.query = q,
                                   .keys = attended.keys,
                                   .values = attended.values,
                                   .weights = attended.weights,
                                   .mask = bias,
                                   .statistics = statistics_of(q, k, n, attended, s),
                                   .beta = detail::reference_beta(g.beta, s.beta_value, q),
                                   .scale = s.scale,
                                   .dropout_p = s.dropout_p,
                                   .literal = s.literal});
  return detail::stored_heads_last(out.to(g.query.scalar_type()));
}

Tensor attention_sh_ref_composite(const Tensor& query, const Tensor& key, const Tensor& value,
                                  at::IntArrayRef scales, const OptionalTensor& beta,
                                  const OptionalTensor& key_padding_mask,
                                  const OptionalTensor& attn_mask, bool bn, bool count_weighting,
                                  std::string_view tail, c10::SymInt num_special, double beta_value,
                                  bool use_std, double eps, bool is_causal,
                                  std::optional<c10::SymInt> query_offset, double dropout_p,
                                  std::optional<double> scale, bool enable_gqa, bool literal) {
  constexpr std::string_view name = "attention_sh_ref";
  const OptionalTensor none;
  const detail::AttentionArguments arguments{query,     key,  value, beta,      key_padding_mask,
                                             attn_mask, none, eps,   dropout_p, enable_gqa};
  const auto settled =
      detail::settle_attention(name, arguments, beta_value, "auto", is_causal, query_offset, scale);
  detail::check_scales(name, arguments, scales, tail, num_special);
  const Settings s{.bn = bn,
                   .count_weighting = count_weighting,
                   .drop_tail = tail == "drop",
                   .is_causal = is_causal,
                   .use_std = use_std,
                   .literal = literal,
                   .num_special = num_special,
                   .query_offset = settled.query_offset,
                   .beta_value = bn ? beta_value : 0.0,
                   .eps = eps,
                   .dropout_p = dropout_p,
                   .scale = settled.scale};
  return detail::for_each_scale(
      scales, {query, key, value, bn ? beta : none, attn_mask},
      [&](const HeadGroup& g) { return attend_group(g, key_padding_mask, s); });
}

using Signature = Tensor(const Tensor& query, const Tensor& key, const Tensor& value,
                         at::IntArrayRef scales, const OptionalTensor& beta,
                         const OptionalTensor& key_padding_mask, const OptionalTensor& attn_mask,
                         bool bn, bool count_weighting, std::string_view tail,
                         c10::SymInt num_special, double beta_value, bool use_std, double eps,
                         bool is_causal, std::optional<c10::SymInt> query_offset, double dropout_p,
                         std::optional<double> scale, bool enable_gqa, bool literal);

}  // namespace

Tensor attention_sh_ref(const Tensor& query, const Tensor& key, const Tensor& value,
                        at::IntArrayRef scales, const OptionalTensor& beta,
                        const OptionalTensor& key_padding_mask, const OptionalTensor& attn_mask,
                        bool bn, bool count_weighting, std::string_view tail,
                        const c10::SymInt& num_special, double beta_value, bool use_std, double eps,
                        bool is_causal, std::optional<c10::SymInt> query_offset, double dropout_p,
                        std::optional<double> scale, bool enable_gqa, bool literal) {
  static const auto op = detail::op_handle<Signature>("kktorch::attention_sh_ref");
  return op.call(query, key, value, scales, beta, key_padding_mask, attn_mask, bn, count_weighting,
                 tail, num_special, beta_value, use_std, eps, is_causal, query_offset, dropout_p,
                 scale, enable_gqa, literal);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def(
      "attention_sh_ref(Tensor query, Tensor key, Tensor value, int[] scales, Tensor? beta=None, "
      "Tensor? key_padding_mask=None, Tensor? attn_mask=None, *, bool bn=False, "
      "bool count_weighting=False, str tail=\"ceil\", SymInt num_special=0, float beta_value=1.0, "
      "bool use_std=True, float eps=1e-05, bool is_causal=False, SymInt? query_offset=None, "
      "float dropout_p=0.0, float? scale=None, bool enable_gqa=False, bool literal=False) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(kktorch, CompositeImplicitAutograd, m) {
  m.impl("attention_sh_ref", &attention_sh_ref_composite);
}

}  // namespace kktorch
