// The stock back end: Attention-BN = softmax attention of ATen on normalised operands
// (normalise.h).
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cstdlib>
#include <limits>
#include <string_view>

#include "ops/attention/backends.h"
#include "ops/attention/normalise.h"
#include "ops/attention/softmax_attention.h"

namespace kktorch::detail {
namespace {

using at::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// True where the kernels' own causal masking says j <= query_offset + i. CUDA kernels align the
/// mask to the last key.
bool plain_causal(const AttentionProblem& p) {
  return p.is_causal && p.query_offset == 0 && (p.query.is_cpu() || p.M() == p.N());
}

/// True where some row has a key in its future.
bool causal_hides_keys(const AttentionProblem& p) {
  return p.is_causal && p.query_offset < p.N() - 1;
}

Tensor add_bias(const Tensor& a, const Tensor& b) { return a.defined() ? a + b : b; }

/// ln n_j + mask + causal mask, as far as the kernel's causal flag does not cover them; undefined
/// if there is nothing.
Tensor logit_bias(const AttentionProblem& p) {
  const auto options = p.beta.options();
  Tensor bias;
  if (p.key_weight.defined()) bias = p.key_weight.log().view({p.B(), 1, 1, p.N()});
  if (p.attn_mask.defined()) {
    const bool boolean = p.attn_mask.scalar_type() == at::kBool;
    auto mask = boolean ? at::zeros(p.attn_mask.sizes(), options)
                              .masked_fill_(p.attn_mask.logical_not(), -kInfinity)
                        : p.attn_mask.to(p.acc());
    if (mask.dim() == 2) mask = mask.view({1, 1, p.M(), p.N()});
    bias = add_bias(bias, mask);
  }
  if (causal_hides_keys(p) && !plain_causal(p)) {
    const auto future =
        at::ones({1, 1, p.M(), p.N()}, options.dtype(at::kBool)).triu(p.query_offset + 1);
    bias = add_bias(bias, at::zeros(future.sizes(), options).masked_fill_(future, -kInfinity));
  }
  return bias;
}

SoftmaxAttention softmax_problem(const AttentionProblem& p, const NormalisedOperands& operands) {
  return {.query = operands.query,
          .key = operands.key,
          .value = valid_values(p),
          .bias = logit_bias(p),
          .is_causal = causal_hides_keys(p) && plain_causal(p),
          .scale = p.scale,
          .dropout_p = p.dropout_p};
}

AttentionResult forward(const AttentionProblem& problem) {
  const auto p = in_working_dtype(problem);
  AttentionResult result;
  const auto operands = normaliser_for(p).forward(p, result.statistics);
  auto softmax = softmax_attention_forward(softmax_problem(p, operands));
  result.out = heads_last(softmax.out, problem.value.scalar_type());
  result.logsumexp = heads_last(softmax.logsumexp.unsqueeze(-1), p.acc()).squeeze(-1);
  result.rng_state =
      p.dropout_p > 0 ? softmax.rng_state : at::empty({0}, p.beta.options().dtype(at::kLong));
  return result;
}

/// The gradients of all heads of `problem` at once.
AttentionGradients backward_heads(const AttentionProblem& problem, const AttentionResult& result,
                                  const Tensor& grad_out) {
  const auto p = in_working_dtype(problem);
  const auto& normaliser = normaliser_for(p);
  const auto operands = normaliser.recompute(p, result.statistics);
  const auto dtype = p.query.scalar_type();
  const SoftmaxResult softmax{result.out.to(dtype), result.logsumexp, result.rng_state};
  auto [query, key, value] = softmax_attention_backward(softmax_problem(p, operands), softmax,
                                                        channels_contiguous(grad_out.to(dtype)));
  // The normaliser works in place, on gradients in their final layout.
  query = heads_last(query, dtype), key = heads_last(key, dtype);
  const auto beta = normaliser.backward(p, operands, result.statistics, query, key);
  const auto out_dtype = problem.query.scalar_type();
  return {heads_last(query, out_dtype), heads_last(key, out_dtype), heads_last(value, out_dtype),
          beta};
}

/// The key heads [begin, begin + count) and their query heads, as views.
struct HeadSlice {
  int64_t begin, count, group;

  Tensor keys(const Tensor& t) const { return t.narrow(1, begin, count); }
  Tensor queries(const Tensor& t) const { return t.narrow(1, begin * group, count * group); }

  AttentionProblem of(AttentionProblem p) const {
    p.query = queries(p.query), p.key = keys(p.key), p.value = keys(p.value);
    p.beta = p.beta.narrow(0, begin * group, count * group);
    if (p.attn_mask.defined() && p.attn_mask.dim() == 4 && p.attn_mask.size(1) > 1)
      p.attn_mask = queries(p.attn_mask);
    return p;
  }
  AttentionResult of(const AttentionResult& r) const {
    return {queries(r.out), queries(r.logsumexp), keys(r.statistics), r.rng_state};
  }
};

/// Key heads that backward takes at a time: enough for all threads, and where attention itself
/// costs far more than a copy no more than that, so that operands and their gradients exist for a
/// few heads only.
int64_t heads_at_a_time(const AttentionProblem& p) {
  constexpr int64_t kLong = 8192;
  if (!p.query.is_cpu() || std::min(p.M(), p.N()) < kLong) return p.Hk();
  const int64_t tasks_per_head = p.B() * (p.H() / p.Hk());
  return std::min(p.Hk(), (at::get_num_threads() + tasks_per_head - 1) / tasks_per_head);
}

AttentionGradients backward(const AttentionProblem& p, const AttentionResult& result,
                            const Tensor& grad_out) {
  const int64_t step = heads_at_a_time(p);
  if (step == p.Hk()) return backward_heads(p, result, grad_out);
  const auto empty = [](const Tensor& t) { return empty_heads_last(t.sym_sizes(), t.options()); };
  const AttentionGradients all{empty(p.query), empty(p.key), empty(p.value),
                               at::empty_like(p.beta)};
  for (int64_t begin = 0; begin < p.Hk(); begin += step) {
    const HeadSlice slice{begin, std::min(step, p.Hk() - begin), p.H() / p.Hk()};
    const auto part = backward_heads(slice.of(p), slice.of(result), slice.queries(grad_out));
    slice.queries(all.query).copy_(part.query);
    slice.keys(all.key).copy_(part.key);
    slice.keys(all.value).copy_(part.value);
    all.beta.narrow(0, begin * slice.group, slice.count * slice.group).copy_(part.beta);
  }
  return all;
}

constexpr AttentionBackend kStock{"stock", forward, backward};

}  // namespace

const AttentionBackend& stock_backend() { return kStock; }

bool use_cuda_kernels() {
#ifdef KKTORCH_WITH_CUDA
  const char* chosen = std::getenv("KKTORCH_EXPERIMENTAL_CUDA");
  return chosen && std::string_view(chosen) == "1";
#else
  return false;
#endif
}

const Normaliser& normaliser_for(const AttentionProblem& p) {
  if (p.plain) return plain_normaliser();
  if (p.query.is_cpu()) return cpu_normaliser();
#ifdef KKTORCH_WITH_CUDA
  if (use_cuda_kernels() && !p.prefix) return cuda_normaliser();
#endif
  return aten_normaliser();
}

AttentionProblem in_working_dtype(AttentionProblem p) {
  if (!p.prefix) return p;
  p.query = p.query.to(p.acc()), p.key = p.key.to(p.acc()), p.value = p.value.to(p.acc());
  return p;
}

Tensor valid_values(const AttentionProblem& p) {
  if (!p.key_weight.defined()) return p.value;
  return p.value.masked_fill((p.key_weight == 0).view({p.B(), 1, p.N(), 1}), 0);
}

}  // namespace kktorch::detail
