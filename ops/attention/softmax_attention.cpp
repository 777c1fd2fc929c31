#include "ops/attention/softmax_attention.h"

#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/jit/frontend/function_schema_parser.h>
#include <torch/headeronly/version.h>

#include <limits>

#include "ops/attention/backends.h"

namespace kktorch::detail {
namespace {

using at::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

constexpr int64_t kVector = 16;  // floats of the widest vector

// ATen's private ops may change between releases; a mismatch must be said at load, not found in a
// wrong result.
const bool schemas_checked = [] {
  for (
      const char* expected :
      {"aten::_scaled_dot_product_flash_attention_for_cpu(Tensor query, Tensor key, Tensor value, "
       "float dropout_p=0., bool is_causal=False, *, Tensor? attn_mask=None, float? scale=None) -> "
       "(Tensor output, Tensor logsumexp)",
       "aten::_scaled_dot_product_flash_attention_for_cpu_backward(Tensor grad_out, Tensor query, "
       "Tensor key, Tensor value, Tensor out, Tensor logsumexp, float dropout_p, bool is_causal, "
       "*, Tensor? attn_mask=None, float? scale=None) -> (Tensor grad_query, Tensor grad_key, "
       "Tensor grad_value)",
       "aten::_scaled_dot_product_flash_attention(Tensor query, Tensor key, Tensor value, float "
       "dropout_p=0., bool is_causal=False, bool return_debug_mask=False, *, float? scale=None) -> "
       "(Tensor output, Tensor logsumexp, Tensor cum_seq_q, Tensor cum_seq_k, SymInt max_q, SymInt "
       "max_k, Tensor rng_state, Tensor unused, Tensor debug_attn_mask)",
       "aten::_scaled_dot_product_efficient_attention(Tensor query, Tensor key, Tensor value, "
       "Tensor? attn_bias, bool compute_log_sumexp, float dropout_p=0., bool is_causal=False, *, "
       "float? scale=None) -> (Tensor output, Tensor log_sumexp, Tensor philox_seed, Tensor "
       "philox_offset)"}) {
    const auto schema = torch::jit::parseSchema(expected);
    const auto found = c10::Dispatcher::singleton().findSchema(schema.operator_name());
    TORCH_CHECK(found && found->schema().isBackwardCompatibleWith(schema), "kktorch: expected ",
                expected, " (built for torch " TORCH_VERSION "), but got ",
                found ? toString(found->schema()) : "no such op",
                "; rebuild kktorch for this torch");
  }
  return true;
}();

Tensor padded(const Tensor& t, int64_t width) {
  const int64_t missing = width - t.size(-1);
  return missing > 0 ? at::constant_pad_nd(t, {0, missing}) : t;
}

std::optional<Tensor> optional(const Tensor& t) {
  return t.defined() ? std::optional<Tensor>(t) : std::nullopt;
}

/// The fused kernels want equal head widths, on CUDA multiples of 8: zeros appended to q and k
/// leave the logits alone, zeros appended to v are cut off again.
SoftmaxAttention with_width(SoftmaxAttention p, int64_t multiple) {
  const int64_t wide = std::max(p.query.size(-1), p.value.size(-1));
  const int64_t width = (wide + multiple - 1) / multiple * multiple;
  p.query = padded(p.query, width);
  p.key = padded(p.key, width);
  p.value = padded(p.value, width);
  return p;
}

Tensor cut(const Tensor& t, const Tensor& like) {
  return t.size(-1) == like.size(-1) ? t : t.narrow(-1, 0, like.size(-1));
}

Gradients cut(const Gradients& grads, const SoftmaxAttention& p) {
  const auto& [query, key, value] = grads;
  return {cut(query, p.query), cut(key, p.key), cut(value, p.value)};
}

// ---- CPU flash: masks with or without the causal flag, grouped key heads ----

SoftmaxResult cpu_flash_forward(const SoftmaxAttention& problem) {
  const auto p = with_width(problem, 1);
  auto [out, logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(
      p.query, p.key, p.value, 0.0, p.is_causal, optional(p.bias), p.scale);
  out = cut(out, problem.value);
  // With fewer keys than a vector holds, ATen takes a row of NaN logits for one that sees no key
  // and returns 0.
  if (p.key.size(2) < kVector)
    out = out + (p.query.sum({-1}, true, logsumexp.scalar_type()) * 0).to(out.scalar_type());
  return {out, logsumexp, at::empty({0}, at::kLong)};
}

Gradients cpu_flash_backward(const SoftmaxAttention& problem, const SoftmaxResult& result,
                             const Tensor& grad_out) {
  const auto p = with_width(problem, 1);
  const int64_t width = p.value.size(-1);
  return cut(at::_scaled_dot_product_flash_attention_for_cpu_backward(
                 padded(grad_out, width), p.query, p.key, p.value, padded(result.out, width),
                 result.logsumexp, 0.0, p.is_causal, optional(p.bias), p.scale),
             problem);
}

// ---- CUDA: flash for 16-bit types without a bias, memory-efficient for the rest ----

/// Key heads repeated to the number of query heads.
SoftmaxAttention with_repeated_heads(SoftmaxAttention p) {
  const int64_t group = p.query.size(1) / p.key.size(1);
  if (group == 1) return p;
  p.key = p.key.repeat_interleave(group, 1);
  p.value = p.value.repeat_interleave(group, 1);
  return p;
}

Tensor sum_group(const Tensor& grad, const Tensor& like) {
  if (grad.size(1) == like.size(1)) return grad;
  return grad.unflatten(1, {like.size(1), grad.size(1) / like.size(1)}).sum(2);
}

Gradients sum_group(const Gradients& grads, const SoftmaxAttention& p) {
  const auto& [query, key, value] = grads;
  return {query, sum_group(key, p.key), sum_group(value, p.value)};
}

/// The efficient kernel wants a materialised, finite bias in the dtype of query, its rows aligned
/// to 16 bytes.
Tensor efficient_bias(const SoftmaxAttention& p) {
  if (!p.bias.defined()) return {};
  const auto dtype = p.query.scalar_type();
  const double lowest = dtype == at::kHalf ? -65504.0 : std::numeric_limits<float>::lowest();
  const int64_t N = p.key.size(2), aligned = (N + 7) / 8 * 8;
  const auto full = p.bias.clamp_min(lowest).to(dtype).expand(
      {p.query.size(0), p.query.size(1), p.query.size(2), N});
  return at::constant_pad_nd(full, {0, aligned - N}).narrow(-1, 0, N);
}

/// Rows that see no key: the finite bias would let them see all keys alike, so they are cleared by
/// hand.
Tensor clear_blind_rows(const Tensor& rows, const Tensor& bias) {
  if (!bias.defined()) return rows;
  return rows.masked_fill(bias.isneginf().all(-1, true), 0);
}

SoftmaxResult cuda_flash_forward(const SoftmaxAttention& problem) {
  const auto p = with_width(with_repeated_heads(problem), 8);
  const auto r = at::_scaled_dot_product_flash_attention(p.query, p.key, p.value, p.dropout_p,
                                                         p.is_causal, false, p.scale);
  return {cut(std::get<0>(r), problem.value), std::get<1>(r), std::get<6>(r).view(at::kLong)};
}

Gradients cuda_flash_backward(const SoftmaxAttention& problem, const SoftmaxResult& result,
                              const Tensor& grad_out) {
  const auto p = with_width(with_repeated_heads(problem), 8);
  const int64_t width = p.value.size(-1);
  const auto none = at::empty({0}, p.query.options().dtype(at::kUInt64));
  const auto rng_state =
      p.dropout_p > 0 ? result.rng_state.view(at::kUInt64) : at::empty({2}, none.options());
  return cut(
      sum_group(at::_scaled_dot_product_flash_attention_backward(
                    padded(grad_out, width), p.query, p.key, p.value, padded(result.out, width),
                    result.logsumexp.contiguous(), {}, {}, p.query.size(2), p.key.size(2),
                    p.dropout_p, p.is_causal, rng_state, none, p.scale),
                problem),
      problem);
}

SoftmaxResult cuda_efficient_forward(const SoftmaxAttention& problem) {
  const auto p = with_width(with_repeated_heads(problem), 8);
  const auto bias = efficient_bias(p);
  auto [out, logsumexp, seed, offset] = at::_scaled_dot_product_efficient_attention(
      p.query, p.key, p.value, optional(bias), true, p.dropout_p, p.is_causal, p.scale);
  // Its log-sum-exp has rows up to a multiple of 32.
  return {clear_blind_rows(cut(out, problem.value), p.bias),
          logsumexp.narrow(-1, 0, p.query.size(2)), at::stack({seed, offset})};
}

Gradients cuda_efficient_backward(const SoftmaxAttention& problem, const SoftmaxResult& result,
                                  const Tensor& grad_out) {
  const auto p = with_width(with_repeated_heads(problem), 8);
  const int64_t width = p.value.size(-1), M = p.query.size(2), aligned = (M + 31) / 32 * 32;
  const auto rng_state =
      p.dropout_p > 0 ? result.rng_state : at::zeros({2}, p.query.options().dtype(at::kLong));
  const auto grads = at::_scaled_dot_product_efficient_attention_backward(
      padded(clear_blind_rows(grad_out, p.bias), width), p.query, p.key, p.value, efficient_bias(p),
      padded(result.out, width), at::constant_pad_nd(result.logsumexp, {0, aligned - M}),
      rng_state[0], rng_state[1], p.dropout_p, {true, true, true, false}, p.is_causal, p.scale);
  return cut(sum_group({std::get<0>(grads), std::get<1>(grads), std::get<2>(grads)}, problem),
             problem);
}

// ---- the materialising path ----

Tensor math_logits(const SoftmaxAttention& p) {
  auto logits = at::matmul(p.query * p.scale, p.key.transpose(-1, -2));
  if (p.bias.defined()) logits = logits + p.bias;
  if (p.is_causal) {
    const auto visible =
        at::ones({logits.size(-2), logits.size(-1)}, logits.options().dtype(at::kBool)).tril();
    logits = logits.masked_fill(visible.logical_not(), -std::numeric_limits<double>::infinity());
  }
  return logits;
}

SoftmaxAttention in_acc(SoftmaxAttention p) {
  const auto acc = at::toOpMathType(p.query.scalar_type());
  p.query = p.query.to(acc), p.key = p.key.to(acc), p.value = p.value.to(acc);
  return p;
}

/// P from the logits and the row log-sum-exp; rows that see no key give 0.
Tensor probabilities(const Tensor& logits, const Tensor& logsumexp) {
  const auto lse = logsumexp.unsqueeze(-1);
  return (logits - lse.masked_fill(lse.isinf(), 0)).exp();
}

enum class Path { kCore, kCpuFlash, kCudaFlash, kCudaEfficient, kMath };

// A rule of the problem alone, so that backward takes the path of forward.
Path path_of(const SoftmaxAttention& p) {
  if (p.query.is_cpu()) return core_is_chosen(p) ? Path::kCore : Path::kCpuFlash;
  const auto dtype = p.query.scalar_type();
  const int64_t width = std::max(p.query.size(-1), p.value.size(-1));
  if (dtype == at::kDouble) return Path::kMath;
  return dtype != at::kFloat && !p.bias.defined() && width <= 256 ? Path::kCudaFlash
                                                                  : Path::kCudaEfficient;
}

}  // namespace

SoftmaxResult math_attention_forward(const SoftmaxAttention& problem) {
  TORCH_CHECK_NOT_IMPLEMENTED(problem.dropout_p == 0,
                              "kktorch: this attention path has no dropout");
  const auto p = with_repeated_heads(in_acc(problem));
  const auto logits = math_logits(p);
  const auto logsumexp = at::logsumexp(logits, -1);
  const auto out = at::matmul(probabilities(logits, logsumexp), p.value);
  return {out.to(problem.value.scalar_type()), logsumexp, at::empty({0}, at::kLong)};
}

Gradients math_attention_backward(const SoftmaxAttention& problem, const SoftmaxResult& result,
                                  const Tensor& grad_out) {
  const auto p = with_repeated_heads(in_acc(problem));
  const auto P = probabilities(math_logits(p), result.logsumexp);
  const auto dout = grad_out.to(p.value.scalar_type());
  const auto delta = (dout * result.out).sum(-1, true);
  const auto dS = P * (at::matmul(dout, p.value.transpose(-1, -2)) - delta) * p.scale;
  const auto dtype = problem.query.scalar_type();
  const auto [query, key, value] =
      sum_group({at::matmul(dS, p.key), at::matmul(dS.transpose(-1, -2), p.query),
                 at::matmul(P.transpose(-1, -2), dout)},
                problem);
  return {query.to(dtype), key.to(dtype), value.to(dtype)};
}

SoftmaxResult softmax_attention_forward(const SoftmaxAttention& problem) {
  switch (path_of(problem)) {
    case Path::kCore:
      return core_attention_forward(problem);
    case Path::kCpuFlash:
      return cpu_flash_forward(problem);
    case Path::kCudaFlash:
      return cuda_flash_forward(problem);
    case Path::kCudaEfficient:
      return cuda_efficient_forward(problem);
    case Path::kMath:
      break;
  }
  return math_attention_forward(problem);
}

Gradients softmax_attention_backward(const SoftmaxAttention& problem, const SoftmaxResult& result,
                                     const Tensor& grad_out) {
  switch (path_of(problem)) {
    case Path::kCore:
      return core_attention_backward(problem, result, grad_out);
    case Path::kCpuFlash:
      return cpu_flash_backward(problem, result, grad_out);
    case Path::kCudaFlash:
      return cuda_flash_backward(problem, result, grad_out);
    case Path::kCudaEfficient:
      return cuda_efficient_backward(problem, result, grad_out);
    case Path::kMath:
      break;
  }
  return math_attention_backward(problem, result, grad_out);
}

}  // namespace kktorch::detail
