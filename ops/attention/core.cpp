// The core back end: hands heads and blocks of them to the kernels of csrc/attention/core, and
// spreads these over threads. Global statistics are measured here and applied by the kernels; with
// prefix statistics, which differ by row, the kernels get the operands that normalise.h prepares.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cstdlib>
#include <numeric>

#include "ops/attention/backends.h"
#include "ops/attention/core_heads.h"
#include "ops/attention/normalise.h"

namespace kktorch::detail {
namespace {

using at::Tensor;
using csrc::Block;

constexpr int64_t kMinQueries = 48;  // of a task, if a head is cut: keys are packed for each
constexpr int64_t kMinKeys = 96;     // likewise in backward, where queries are packed
constexpr int64_t kPartKeys = 1024;  // of a part of the keys of few rows, in forward
constexpr int64_t kTasks = 16;       // that little else can be cut into, on any machine

/// The mask as the kernels read it: bool or acc, [B|1, H|1, M, N], columns contiguous.
Tensor kernel_mask(const AttentionProblem& p) {
  if (!p.attn_mask.defined()) return {};
  const auto& mask = p.attn_mask;
  const auto typed = mask.scalar_type() == at::kBool ? mask : mask.to(p.acc());
  return channels_contiguous(typed.dim() == 2 ? typed.view({1, 1, p.M(), p.N()}) : typed);
}

template <typename A>
csrc::LogitMask<A> mask_rows(const Tensor& mask) {
  if (!mask.defined()) return {};
  const auto stride = [&](int64_t dim) { return mask.size(dim) == 1 ? 0 : mask.stride(dim); };
  const bool boolean = mask.scalar_type() == at::kBool;
  return {.visible = boolean ? mask.const_data_ptr<bool>() : nullptr,
          .bias = boolean ? nullptr : mask.const_data_ptr<A>(),
          .batch_stride = stride(0),
          .head_stride = stride(1),
          .row_stride = stride(2)};
}

/// An attention task costs about M N / 4 element operations beside those on its rows.
int64_t work_of(const AttentionProblem& p, int64_t G) {
  return (2 * p.N() + G * p.M()) * p.D() + G * p.M() * p.N() / 4;
}

// ---- forward ----

/// The fewest parts of a head that give every thread as many tasks. Rows do not feel the cut.
int64_t query_parts(const AttentionProblem& p) {
  const int64_t heads = p.B() * p.Hk(), threads = at::get_num_threads();
  if (heads >= 2 * threads) return 1;
  return std::clamp<int64_t>(p.M() / kMinQueries, 1, threads / std::gcd(heads, threads));
}

/// Parts of the keys of every row, where rows are too few to keep the threads busy. Their sums are
/// joined in order: the cut must not depend on the number of threads.
int64_t forward_key_parts(const AttentionProblem& p) {
  const int64_t tasks = p.B() * p.H() * ((p.M() + kMinQueries - 1) / kMinQueries);
  return std::clamp<int64_t>(kTasks / std::max<int64_t>(1, tasks), 1,
                             std::max<int64_t>(1, p.N() / kPartKeys));
}

template <typename T>
void run_forward(const AttentionProblem& p, const Tensor& statistics, bool measure,
                 const Tensor& out, const Tensor& logsumexp) {
  using A = csrc::acc_t<T>;
  const auto view = head_views<T>(p, statistics);
  const auto moments = moments_of<T>(view, measure, p);
  const KeyMeasurement<T> measurement{view, measure, moments.template mutable_data_ptr<A>()};
  const auto& kernels = csrc::core_kernels<T>();
  const auto mask = kernel_mask(p);
  const auto problem = core_problem<T>(p, statistics, mask_rows<A>(mask));
  const csrc::CoreResult<T> result{mutable_head_rows<T>(out), mutable_head_rows<A>(logsumexp)};
  const int64_t scratch_size = kernels.forward_scratch(problem);
  const int64_t key_parts = forward_key_parts(p), row_size = p.Dv() + 2;
  const int64_t parts = key_parts > 1 ? key_parts : query_parts(p);
  Tensor sums;
  if (key_parts > 1) sums = at::empty({p.B(), p.H(), key_parts, p.M(), row_size}, p.beta.options());
  const auto sums_of = [&](int64_t b, int64_t h) {
    return sums.template mutable_data_ptr<A>() + (b * p.H() + h) * key_parts * p.M() * row_size;
  };
  const auto attend = [&](int64_t u, int64_t block, A*) {
    const ThreadScratch scratch(scratch_size);
    const int64_t b = u / view.Hk, h = view.query_head(u, block / parts), part = block % parts;
    if (key_parts == 1)
      kernels.forward(problem, result, b, h, part_of(part, parts, p.M()), scratch.data());
    else
      kernels.forward_part(problem, b, h, {0, p.M()}, part_of(part, parts, p.N()),
                           sums_of(b, h) + part * p.M() * row_size, scratch.data());
  };
  for_each_head<A>(
      view.heads(), work_of(p, view.G()), p.D(), [&](int64_t u) { measurement.begin(u); },
      measurement.blocks,
      [&](int64_t u, int64_t block, A* scratch) { measurement.block(u, block, scratch); },
      [&](int64_t u) { measurement.merge(u); }, view.G() * parts, attend);
  if (key_parts == 1) return;
  for_each<A>(p.B() * p.H(), key_parts * p.M() * row_size, 0, [&](int64_t i, A*) {
    const ThreadScratch scratch(scratch_size);
    const int64_t b = i / p.H(), h = i % p.H();
    kernels.join_parts(problem, result, b, h, {0, p.M()}, sums_of(b, h), key_parts, scratch.data());
  });
}

// ---- backward ----

/// Parts of the keys of a head. Their sums are merged in order: the cut must not depend on the
/// number of threads.
int64_t key_parts(const AttentionProblem& p) {
  const int64_t heads = p.B() * p.Hk();
  return std::clamp<int64_t>((kTasks + heads - 1) / heads, 1,
                             std::max<int64_t>(1, p.N() / kMinKeys));
}

/// Whole heads are tasks where they are many; otherwise every step runs over parts of all heads.
template <typename T>
void run_backward(const AttentionProblem& p, const Tensor& statistics,
                  const AttentionResult& result, const Tensor& grad_out,
                  const AttentionGradients& out, const Tensor& grad_beta /* [B, H] */) {
  using A = csrc::acc_t<T>;
  const auto view = head_views<T>(p, statistics);
  const auto mask = kernel_mask(p), dout = channels_contiguous(grad_out);
  const auto saved_out = channels_contiguous(result.out);
  const auto problem = core_problem<T>(p, statistics, mask_rows<A>(mask));
  const csrc::CoreGradients<T> gradients{.grad_out = head_rows<T>(dout),
                                         .out = head_rows<T>(saved_out),
                                         .logsumexp = head_rows<A>(result.logsumexp),
                                         .query = mutable_head_rows<T>(out.query),
                                         .key = mutable_head_rows<T>(out.key),
                                         .value = mutable_head_rows<T>(out.value)};
  const int64_t heads = view.heads(), parts = key_parts(p), D = p.D();
  const auto total = p.key_weight.defined() ? p.key_weight.sum(1) : Tensor();
  const HeadBackward<T> head(view, problem, gradients, parts,
                             total.defined() ? total.const_data_ptr<A>() : nullptr,
                             grad_beta.mutable_data_ptr<A>());
  const int64_t scratch_size = csrc::core_kernels<T>().backward_scratch(problem);
  if (has_many_heads(heads)) {
    for_each<A>(heads, 2 * work_of(p, view.G()), 0, [&](int64_t u, A*) {
      const ThreadScratch scratch(scratch_size +
                                  head.sums_size() * static_cast<int64_t>(sizeof(A)));
      A* sums = reinterpret_cast<A*>(scratch.data() + scratch_size);
      head.run(u, sums, scratch.data());
    });
    return;
  }
  const auto sums = at::empty({heads, head.sums_size()}, p.beta.options());
  const auto sums_of = [&](int64_t u) {
    return sums.template mutable_data_ptr<A>() + u * head.sums_size();
  };
  for_each<A>(heads * parts, 2 * work_of(p, view.G()) / parts, 0, [&](int64_t task, A*) {
    const ThreadScratch scratch(scratch_size);
    head.attend(task / parts, task % parts, sums_of(task / parts), scratch.data());
  });
  for_each_head<A>(
      heads, (view.G() * p.M() + p.N()) * D, D, [](int64_t) {}, head.query_blocks(),
      [&](int64_t u, int64_t i, A*) { head.finish_queries(u, i, sums_of(u)); },
      [&](int64_t u) { head.merge(u, sums_of(u)); }, head.key_blocks(),
      [&](int64_t u, int64_t i, A*) { head.finish_keys(u, i, sums_of(u)); });
}

// ---- the interface ----

/// x0 = m = 0 and r = 1: queries and keys as they are. With `mind_single_keys` r = 0 where a sample
/// has fewer than two valid keys: its softmax is constant, and its gradients are exactly 0.
Tensor identity_statistics(const AttentionProblem& p, bool mind_single_keys) {
  auto statistics = at::zeros({p.B(), p.Hk(), 3, p.D()}, p.beta.options());
  auto rstd = statistics.select(2, 2);
  if (!mind_single_keys)
    rstd.fill_(1);
  else if (p.key_weight.defined())
    rstd.copy_(p.key_weight.gt(0).sum(1).gt(1).view({p.B(), 1, 1}));
  else
    rstd.fill_(p.N() > 1 ? 1 : 0);
  return statistics;
}

/// The softmax attention on prepared operands, as a problem of its own.
AttentionProblem on_operands(AttentionProblem p, const NormalisedOperands& operands) {
  p.query = operands.query, p.key = operands.key;
  p.beta = at::zeros_like(p.beta);
  p.use_std = false;
  return p;
}

/// Outputs of forward, stored (B, M, H, width).
struct Attended {
  Tensor out, logsumexp;
};

/// With `measure`, `statistics` are filled first; the kernels apply them.
Attended attend(const AttentionProblem& p, const Tensor& statistics, bool measure) {
  const Attended result{empty_heads_last({p.B(), p.H(), p.M(), p.Dv()}, p.query.options()),
                        empty_heads_last({p.B(), p.H(), p.M(), 1}, p.beta.options()).squeeze(-1)};
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, p.query.scalar_type(), "attention_bn",
      [&] { run_forward<scalar_t>(p, statistics, measure, result.out, result.logsumexp); });
  return result;
}

/// Gradients of `p` with these statistics, which the kernels apply.
AttentionGradients differentiate(const AttentionProblem& p, const Tensor& statistics,
                                 const Attended& result, const Tensor& grad_out) {
  const auto like = [](const Tensor& t) { return empty_heads_last(t.sym_sizes(), t.options()); };
  AttentionGradients grads{like(p.query), like(p.key), like(p.value), {}};
  const auto grad_beta = at::empty({p.B(), p.H()}, p.beta.options());
  const auto dtype = p.query.scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "_attention_bn_backward", [&] {
    run_backward<scalar_t>(p, statistics, {result.out.to(dtype), result.logsumexp, {}, {}},
                           grad_out.to(dtype), grads, grad_beta);
  });
  grads.beta = grad_beta.sum(0);
  return grads;
}

AttentionResult forward(const AttentionProblem& problem) {
  const auto p = in_working_dtype(problem);
  AttentionResult result;
  Attended attended;
  if (p.prefix) {
    const auto operands = normaliser_for(p).forward(p, result.statistics);
    attended = attend(on_operands(p, operands), identity_statistics(p, false), false);
  } else {
    result.statistics = p.plain ? identity_statistics(p, true)
                                : at::empty({p.B(), p.Hk(), 3, p.D()}, p.beta.options());
    attended = attend(p, result.statistics, !p.plain);
  }
  result.out = heads_last(attended.out, problem.value.scalar_type());
  result.logsumexp = attended.logsumexp;
  result.rng_state = at::empty({0}, p.beta.options().dtype(at::kLong));
  return result;
}

AttentionGradients backward(const AttentionProblem& problem, const AttentionResult& result,
                            const Tensor& grad_out) {
  const auto p = in_working_dtype(problem);
  const Attended attended{result.out, result.logsumexp};
  AttentionGradients grads;
  if (p.prefix) {
    const auto& normaliser = normaliser_for(p);
    const auto operands = normaliser.recompute(p, result.statistics);
    grads =
        differentiate(on_operands(p, operands), identity_statistics(p, false), attended, grad_out);
    grads.beta = normaliser.backward(p, operands, result.statistics, grads.query, grads.key);
  } else {
    grads = differentiate(p, result.statistics, attended, grad_out);
  }
  const auto dtype = problem.query.scalar_type();
  return {heads_last(grads.query, dtype), heads_last(grads.key, dtype),
          heads_last(grads.value, dtype), grads.beta};
}

/// Softmax attention as a problem: queries and keys as they are, the bias as a mask.
AttentionProblem problem_of(const SoftmaxAttention& s) {
  const auto acc = s.query.options().dtype(at::toOpMathType(s.query.scalar_type()));
  return {.query = channels_contiguous(s.query),
          .key = channels_contiguous(s.key),
          .value = channels_contiguous(s.value),
          .beta = at::zeros({s.query.size(1)}, acc),
          .key_weight = {},
          .attn_mask = s.bias,
          .eps = 0,
          .scale = s.scale,
          .dropout_p = s.dropout_p,
          .use_std = false,
          .plain = true,
          .prefix = false,
          .is_causal = s.is_causal,
          .query_offset = 0};
}

constexpr AttentionBackend kCore{"core", forward, backward};

}  // namespace

const AttentionBackend& core_backend() { return kCore; }

SoftmaxResult core_attention_forward(const SoftmaxAttention& attention) {
  const auto p = problem_of(attention);
  const auto result = attend(p, identity_statistics(p, false), false);
  return {result.out, result.logsumexp, at::empty({0}, at::kLong)};
}

std::tuple<Tensor, Tensor, Tensor> core_attention_backward(const SoftmaxAttention& attention,
                                                           const SoftmaxResult& result,
                                                           const Tensor& grad_out) {
  const auto p = problem_of(attention);
  const auto grads =
      differentiate(p, identity_statistics(p, false), {result.out, result.logsumexp}, grad_out);
  return {grads.query, grads.key, grads.value};
}

bool core_is_chosen(const SoftmaxAttention& attention) {
  return forced_backend() != "stock" && core_takes(problem_of(attention));
}

bool core_takes(const AttentionProblem& p) {
  return p.query.is_cpu() && p.dropout_p == 0 && p.D() <= csrc::kCoreMaxWidth &&
         p.Dv() <= csrc::kCoreMaxWidth;
}

std::string_view forced_backend() {
  const char* variable = std::getenv("KKTORCH_ATTENTION");
  const std::string_view forced = variable ? variable : "";
  TORCH_CHECK_VALUE(forced.empty() || forced == "stock" || forced == "core",
                    "KKTORCH_ATTENTION: expected stock or core, but got '", forced, "'");
  return forced;
}

const AttentionBackend& attention_backend(const AttentionProblem& p) {
  const auto forced = forced_backend();
  if (forced == "stock") return stock_backend();
  TORCH_CHECK_NOT_IMPLEMENTED(
      forced != "core" || core_takes(p),
      "KKTORCH_ATTENTION=core: expected CPU tensors, dropout_p = 0 and heads at most ",
      csrc::kCoreMaxWidth, " wide, but got a query ", p.query.sizes(), " and a value ",
      p.value.sizes(), " on ", p.query.device(), " with dropout_p = ", p.dropout_p);
  return core_takes(p) ? kCore : stock_backend();
}

}  // namespace kktorch::detail
