#include "ops/attention/causal_windows.h"

#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/stack.h>

#include <functional>
#include <limits>
#include <vector>

#include "ops/attention/normalise.h"
#include "ops/attention/softmax_attention.h"
#include "ops/token_pool.h"

namespace kktorch::detail {
namespace {

using at::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The rows behind the P special tokens, laid out for the parts of the attention. h heads of width
/// W; nb windows of s tokens, the last one padded.
struct Windows {
  int64_t N, P, s, nb;

  explicit Windows(int64_t length, const WindowPattern& pattern)
      : N(length),
        P(pattern.num_special),
        s(pattern.window),
        nb((N - P + pattern.window - 1) / pattern.window) {}

  int64_t body_length() const { return N - P; }
  int64_t past_length() const { return (nb - 1) * s; }  // of the windows that are in some past

  /// [B, h, N, W] -> [B, h, N - P, W]
  Tensor body(const Tensor& t) const { return t.narrow(2, P, body_length()); }

  /// [B, h, N, W] -> [B, h, nb, s, W]
  Tensor split(const Tensor& t) const {
    return at::constant_pad_nd(body(t), {0, 0, 0, nb * s - body_length()}).unflatten(2, {nb, s});
  }

  /// One attention per window: [B, h, N, W] -> [B nb, h, s, W], and back to the body.
  Tensor own(const Tensor& t) const { return split(t).transpose(1, 2).flatten(0, 1); }
  Tensor from_own(const Tensor& t, double) const {
    return t.unflatten(0, {t.size(0) / nb, nb})
        .transpose(1, 2)
        .flatten(2, 3)
        .narrow(2, 0, body_length());
  }

  /// One attention per place in the window, as heads that share a key head, so that row b - 1 of
  /// window b sees the windows 0 ... b - 1 in the manner of plain causal attention:
  /// [B, h, N, W] -> [B, h s, nb - 1, W], and back to the body.
  Tensor past(const Tensor& t) const {
    return split(t).narrow(2, 1, nb - 1).transpose(2, 3).flatten(1, 2);
  }
  Tensor from_past(const Tensor& t, double first_window) const {
    const auto rows = t.unflatten(1, {t.size(1) / s, s}).transpose(2, 3).flatten(2, 3);
    return at::constant_pad_nd(rows, {0, 0, s, 0}, first_window).narrow(2, 0, body_length());
  }

  Tensor from_body(const Tensor& t, double) const { return t; }
};

std::optional<Tensor> optional(const Tensor& t) {
  return t.defined() ? std::optional<Tensor>(t) : std::nullopt;
}

/// One softmax attention of body rows, and where its rows and keys belong.
struct Part {
  SoftmaxAttention attention;
  Tensor (Windows::*take)(const Tensor&) const;
  Tensor (Windows::*put)(const Tensor&, double missing) const;
  /// Adds the gradients of attention.key or .value to those of all tokens.
  std::function<void(const Tensor& grad_part, Tensor& grad_tokens)> add_key_gradient;
};

/// The operands of one problem, cut into parts.
class Parts {
 public:
  Parts(const AttentionProblem& problem, const WindowPattern& pattern,
        const NormalisedOperands& operands)
      : windows_(problem.N(), pattern),
        pattern_(pattern),
        query_(operands.query),
        key_(operands.key),
        value_(valid_values(problem)),
        weight_(problem.key_weight),
        scale_(problem.scale) {
    if (windows_.body_length() == 0) return;
    parts_.push_back(own_window());
    if (windows_.nb > 1) parts_.push_back(past_windows());
    if (windows_.P > 0) parts_.push_back(special_tokens());
  }

  const Windows& windows() const { return windows_; }
  const std::vector<Part>& body() const { return parts_; }

  /// The special tokens among themselves.
  SoftmaxAttention special_rows() const {
    const int64_t P = windows_.P;
    return attention(query_.narrow(2, 0, P), key_.narrow(2, 0, P), value_.narrow(2, 0, P),
                     bias(0, P), true);
  }

 private:
  SoftmaxAttention attention(Tensor query, Tensor key, Tensor value, Tensor bias,
                             bool is_causal) const {
    return {.query = std::move(query),
            .key = std::move(key),
            .value = std::move(value),
            .bias = std::move(bias),
            .is_causal = is_causal,
            .scale = scale_,
            .dropout_p = 0};
  }

  /// ln of the weights of tokens, [B, 1, 1, length]; undefined where all are 1.
  Tensor bias(int64_t begin, int64_t length) const {
    if (!weight_.defined()) return {};
    return weight_.narrow(1, begin, length).log().unsqueeze(1).unsqueeze(1);
  }

  Part own_window() const {
    const auto& w = windows_;
    // The padding of a short last window is in the future of every row that counts.
    Tensor own_bias;
    if (weight_.defined())
      own_bias = w.own(weight_.log().unsqueeze(1).unsqueeze(-1)).transpose(-1, -2);
    return {attention(w.own(query_), w.own(key_), w.own(value_), own_bias, true), &Windows::own,
            &Windows::from_own,
            [&w](const Tensor& grad, Tensor& tokens) { w.body(tokens).add_(w.from_own(grad, 0)); }};
  }

  Part special_tokens() const {
    const int64_t P = windows_.P;
    return {attention(windows_.body(query_), key_.narrow(2, 0, P), value_.narrow(2, 0, P),
                      bias(0, P), false),
            &Windows::body, &Windows::from_body,
            [P](const Tensor& grad, Tensor& tokens) { tokens.narrow(2, 0, P).add_(grad); }};
  }

  Part past_windows() const {
    const auto& w = windows_;
    const auto past_tokens = [&w](const Tensor& t, int64_t dim) {
      return t.narrow(dim, w.P, w.past_length());
    };
    const Tensor padding = weight_.defined() ? past_tokens(weight_, 1) == 0 : Tensor();
    const auto [key, count] = token_pool(past_tokens(key_, 2), w.s, optional(padding));
    const auto value = std::get<0>(token_pool(past_tokens(value_, 2), w.s, optional(padding)));
    Tensor past_bias;
    if (padding.defined() || pattern_.count_weighting) {
      const auto weight = pattern_.count_weighting ? count : count.gt(0);
      past_bias = weight.to(at::toOpMathType(query_.scalar_type())).log();
      past_bias = past_bias.unsqueeze(1).unsqueeze(1);
    }
    const auto add = [&w, past_tokens, padding, count = count](const Tensor& grad, Tensor& tokens) {
      past_tokens(tokens, 2).add_(
          token_pool_backward(grad, count, optional(padding), w.past_length(), w.s));
    };
    return {attention(w.past(query_), key, value, past_bias, true), &Windows::past,
            &Windows::from_past, add};
  }

  Windows windows_;
  WindowPattern pattern_;
  Tensor query_, key_, value_, weight_;
  double scale_;
  std::vector<Part> parts_;
};

/// exp(lse_part - lse), 0 where neither sees anything; [B, H, L, 1].
Tensor share_of(const Tensor& part, const Tensor& total) {
  return (part - total.masked_fill(total.isneginf(), 0)).exp();
}

struct Rows {
  Tensor out, logsumexp;  // [B, H, L, Dv] and [B, H, L, 1], acc
};

/// True for rows that see nothing, [b, 1, rows|1, 1]; kernels differ in what they say of those.
Tensor blind_rows(const SoftmaxAttention& attention) {
  const auto hidden = attention.bias.isneginf();
  if (!attention.is_causal) return hidden.all(-1, true);
  return hidden.logical_not().cumsum(-1).eq(0).transpose(-1, -2);
}

Rows attend(const SoftmaxAttention& attention) {
  const auto r = softmax_attention_forward(attention);
  auto lse = r.logsumexp.unsqueeze(-1);
  if (attention.bias.defined()) lse = lse.masked_fill(blind_rows(attention), -kInfinity);
  return {r.out.to(lse.scalar_type()), lse};
}

Rows attend_body(const Parts& parts) {
  const auto& windows = parts.windows();
  std::vector<Rows> rows;
  std::vector<Tensor> logsumexps;
  for (const auto& part : parts.body()) {
    const auto r = attend(part.attention);
    rows.push_back({(windows.*part.put)(r.out, 0), (windows.*part.put)(r.logsumexp, -kInfinity)});
    logsumexps.push_back(rows.back().logsumexp);
  }
  const auto total = at::logsumexp(at::stack(logsumexps), 0);
  Tensor out;
  for (const auto& r : rows) {
    const auto share = r.out * share_of(r.logsumexp, total);
    out = out.defined() ? out + share : share;
  }
  return {out, total};
}

}  // namespace

AttentionResult causal_windows_forward(const AttentionProblem& problem,
                                       const WindowPattern& pattern) {
  const auto p = in_working_dtype(problem);
  AttentionResult result;
  const Parts parts(p, pattern, normaliser_for(p).forward(p, result.statistics));
  std::vector<Tensor> out, logsumexp;
  const auto append = [&](const Rows& rows) {
    out.push_back(rows.out), logsumexp.push_back(rows.logsumexp);
  };
  if (pattern.num_special > 0) append(attend(parts.special_rows()));
  if (!parts.body().empty()) append(attend_body(parts));
  result.out = heads_last(at::cat(out, 2), problem.value.scalar_type());
  result.logsumexp = heads_last(at::cat(logsumexp, 2), p.acc()).squeeze(-1);
  result.rng_state = at::empty({0}, p.beta.options().dtype(at::kLong));
  return result;
}

AttentionGradients causal_windows_backward(const AttentionProblem& problem,
                                           const WindowPattern& pattern,
                                           const AttentionResult& result, const Tensor& grad_out) {
  const auto p = in_working_dtype(problem);
  const auto& normaliser = normaliser_for(p);
  const auto operands = normaliser.recompute(p, result.statistics);
  const Parts parts(p, pattern, operands);
  const auto& windows = parts.windows();
  const auto dtype = p.query.scalar_type();
  const auto out = result.out.to(dtype), dout = grad_out.to(dtype);
  // A row that sees nothing has P = 0 in every part: any finite normaliser says so.
  const auto lse = result.logsumexp.masked_fill(result.logsumexp.isneginf(), 0).unsqueeze(-1);

  const auto zeros = [](const Tensor& t) {
    return empty_heads_last(t.sym_sizes(), t.options()).zero_();
  };
  auto query = zeros(p.query), key = zeros(p.key), value = zeros(p.value);
  const auto differentiate = [](const SoftmaxAttention& attention, const Tensor& rows_out,
                                const Tensor& rows_lse, const Tensor& rows_dout) {
    return softmax_attention_backward(attention, {rows_out, rows_lse.squeeze(-1).contiguous(), {}},
                                      channels_contiguous(rows_dout));
  };
  if (const int64_t P = pattern.num_special; P > 0) {
    const auto rows = [P](const Tensor& t) { return t.narrow(2, 0, P); };
    const auto [dq, dk, dv] = differentiate(parts.special_rows(), rows(out), rows(lse), rows(dout));
    rows(query).add_(dq), rows(key).add_(dk), rows(value).add_(dv);
  }
  for (const auto& part : parts.body()) {
    const auto take = [&](const Tensor& t) { return (windows.*part.take)(t); };
    const auto [dq, dk, dv] = differentiate(part.attention, take(out), take(lse), take(dout));
    windows.body(query).add_((windows.*part.put)(dq, 0));
    part.add_key_gradient(dk, key);
    part.add_key_gradient(dv, value);
  }
  const auto beta = normaliser.backward(p, operands, result.statistics, query, key);
  const auto out_dtype = problem.query.scalar_type();
  return {heads_last(query, out_dtype), heads_last(key, out_dtype), heads_last(value, out_dtype),
          beta};
}

}  // namespace kktorch::detail
