// The core back end: hands heads and blocks of them to the kernels of csrc/attention/core, and
// spreads these over threads. Global statistics are measured here and applied by the kernels; with
// prefix statistics, which differ by row, the kernels get the operands that normalise.h prepares.
#include "csrc/attention/core/core.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cstdlib>
#include <memory>
#include <numeric>

#include "ops/attention/backends.h"
#include "ops/attention/head_passes.h"
#include "ops/attention/normalise.h"

namespace kktorch::detail {
namespace {

using at::Tensor;
using csrc::Block;

constexpr int64_t kMinQueries = 48;     // of a task, if a head is cut: keys are packed for each
constexpr int64_t kMinKeys = 96;        // likewise in backward, where queries are packed
constexpr int64_t kBackwardTasks = 16;  // that backward cuts few heads into, on any machine

/// Scratch memory of this thread, aligned to cache lines. It is kept from call to call, because
/// fresh memory costs a page fault every 4 KB, unless it is large.
class ThreadScratch {
 public:
  explicit ThreadScratch(int64_t size) {
    constexpr int64_t kKept = int64_t{1} << 24;
    thread_local Memory kept;
    thread_local int64_t kept_size = 0;
    if (size > kKept) {
      own_ = allocate(size);
    } else if (size > kept_size) {
      kept = allocate(size);
      kept_size = size;
    }
    data_ = own_ ? own_.get() : kept.get();
  }

  std::byte* data() const { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Delete {
    void operator()(std::byte* memory) const { ::operator delete[](memory, kLine); }
  };
  using Memory = std::unique_ptr<std::byte[], Delete>;

  static Memory allocate(int64_t size) {
    return Memory(static_cast<std::byte*>(::operator new[](size, kLine)));
  }

  Memory own_;
  std::byte* data_;
};

template <typename T>
csrc::HeadRows<const T> head_rows(const Tensor& t) {
  return {t.const_data_ptr<T>(), t.stride(0), t.stride(1), t.stride(2)};
}
template <typename T>
csrc::HeadRows<T> mutable_head_rows(const Tensor& t) {
  return {t.mutable_data_ptr<T>(), t.stride(0), t.stride(1), t.stride(2)};
}

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

template <typename T>
csrc::CoreProblem<T> core_problem(const AttentionProblem& p, const Tensor& statistics,
                                  const Tensor& mask) {
  using A = csrc::acc_t<T>;
  return {.B = p.B(),
          .H = p.H(),
          .Hk = p.Hk(),
          .M = p.M(),
          .N = p.N(),
          .D = p.D(),
          .Dv = p.Dv(),
          .query = head_rows<T>(p.query),
          .key = head_rows<T>(p.key),
          .value = head_rows<T>(p.value),
          .statistics = mutable_head_rows<A>(statistics),
          .beta = p.beta.const_data_ptr<A>(),
          .scale = static_cast<A>(p.scale),
          .weight = p.key_weight.defined() ? p.key_weight.const_data_ptr<A>() : nullptr,
          .mask = mask_rows<A>(mask),
          .is_causal = p.is_causal,
          .query_offset = p.query_offset};
}

/// Cuts [0, size) into `parts` blocks of nearly equal size.
Block part_of(int64_t part, int64_t parts, int64_t size) {
  return {part * size / parts, (part + 1) * size / parts};
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

template <typename T>
void run_forward(const AttentionProblem& p, const Tensor& statistics, bool measure,
                 const Tensor& out, const Tensor& logsumexp) {
  using A = csrc::acc_t<T>;
  const HeadViews<T> view(p, statistics);
  const KeyMeasurement<T> measurement(view, measure);
  const auto& kernels = csrc::core_kernels<T>();
  const auto mask = kernel_mask(p);
  const auto problem = core_problem<T>(p, statistics, mask);
  const csrc::CoreResult<T> result{mutable_head_rows<T>(out), mutable_head_rows<A>(logsumexp)};
  const int64_t scratch_size = kernels.forward_scratch(problem), parts = query_parts(p);
  const auto attend = [&](int64_t u, int64_t block, A*) {
    const ThreadScratch scratch(scratch_size);
    kernels.forward(problem, result, u / view.Hk, view.query_head(u, block / parts),
                    part_of(block % parts, parts, p.M()), scratch.data());
  };
  for_each_head<A>(
      view.heads(), work_of(p, view.G), p.D(), [&](int64_t u) { measurement.begin(u); },
      measurement.blocks,
      [&](int64_t u, int64_t block, A* scratch) { measurement.block(u, block, scratch); },
      [&](int64_t u) { measurement.merge(u); }, view.G * parts, attend);
}

// ---- backward ----

/// Parts of the keys of a head. Their sums are merged in order: the cut must not depend on the
/// number of threads.
int64_t key_parts(const AttentionProblem& p) {
  const int64_t heads = p.B() * p.Hk();
  return std::clamp<int64_t>((kBackwardTasks + heads - 1) / heads, 1,
                             std::max<int64_t>(1, p.N() / kMinKeys));
}

/// Backward of one key head, in steps that a head has to take one after the other.
template <typename T>
class HeadBackward {
  using A = csrc::acc_t<T>;

 public:
  HeadBackward(const HeadViews<T>& view, const csrc::CoreProblem<T>& problem,
               const csrc::CoreGradients<T>& gradients, A* grad_beta /* [B, H] */)
      : view_(view),
        problem_(problem),
        gradients_(gradients),
        grad_beta_(grad_beta),
        parts_(key_parts(view.p)),
        total_(view.p.key_weight.defined() ? view.p.key_weight.sum(1) : Tensor()) {}

  int64_t key_parts_of_head() const { return parts_; }
  int64_t query_blocks() const { return view_.G * blocks_of(view_.p.M()); }
  int64_t key_blocks() const { return blocks_of(view_.p.N()); }

  /// Values of accumulators that a head needs, from step to step.
  int64_t sums_size() const {
    return parts_ * query_size() + view_.p.N() * view_.D + (query_blocks() + 1) * 2 * view_.D;
  }

  /// The keys of one part: gradients of their values and of c, and a summand of that of q^.
  void attend(int64_t u, int64_t part, A* sums, void* scratch) const {
    kernels_.backward(problem_, gradients_, u / view_.Hk, u % view_.Hk,
                      part_of(part, parts_, view_.p.N()), sums + part * query_size(),
                      key_sums(sums), scratch);
  }

  void finish_queries(int64_t u, int64_t block, A* sums, A* scratch) const {
    const int64_t M = view_.p.M(), blocks = blocks_of(M), g = block / blocks;
    const auto rows = block_at(block % blocks, M);
    A* out = column_sums(sums, block);
    kernels_.finish_queries(problem_, gradients_, u / view_.Hk, view_.query_head(u, g), rows,
                            sums + (g * M + rows.begin) * view_.D, parts_, query_size(),
                            {out, out + view_.D}, scratch);
  }

  void merge(int64_t u, A* sums) const {
    merge_query_sums(view_, u, column_sums(sums, 0), blocks_of(view_.p.M()),
                     column_sums(sums, query_blocks()), grad_beta_ + u * view_.G);
  }

  void finish_keys(int64_t u, int64_t block, A* sums, A* scratch) const {
    const int64_t N = view_.p.N(), b = u / view_.Hk;
    const auto rows = block_at(block, N);
    const A* group = column_sums(sums, query_blocks());
    const A total = total_.defined() ? total_.template const_data_ptr<A>()[b] : static_cast<A>(N);
    kernels_.finish_keys(problem_, gradients_, b, u % view_.Hk, rows,
                         key_sums(sums) + rows.begin * view_.D, total,
                         {const_cast<A*>(group), const_cast<A*>(group) + view_.D}, scratch);
  }

 private:
  int64_t query_size() const { return view_.G * view_.p.M() * view_.D; }
  A* key_sums(A* sums) const { return sums + parts_ * query_size(); }
  /// Of a block of queries; behind the last one, those of the group.
  A* column_sums(A* sums, int64_t block) const {
    return key_sums(sums) + (view_.p.N() + block * 2) * view_.D;
  }

  const HeadViews<T>& view_;
  const csrc::CoreProblem<T>& problem_;
  const csrc::CoreGradients<T>& gradients_;
  const csrc::CoreKernels<T>& kernels_ = csrc::core_kernels<T>();
  A* grad_beta_;
  int64_t parts_;
  Tensor total_;  // [B] sum of the key weights
};

/// Whole heads are tasks where they are many; otherwise every step runs over parts of all heads.
template <typename T>
void run_backward(const AttentionProblem& p, const Tensor& statistics,
                  const AttentionResult& result, const Tensor& grad_out,
                  const AttentionGradients& out, const Tensor& grad_beta /* [B, H] */) {
  using A = csrc::acc_t<T>;
  const HeadViews<T> view(p, statistics);
  const auto mask = kernel_mask(p), dout = channels_contiguous(grad_out);
  const auto saved_out = channels_contiguous(result.out);
  const auto problem = core_problem<T>(p, statistics, mask);
  const csrc::CoreGradients<T> gradients{.grad_out = head_rows<T>(dout),
                                         .out = head_rows<T>(saved_out),
                                         .logsumexp = head_rows<A>(result.logsumexp),
                                         .query = mutable_head_rows<T>(out.query),
                                         .key = mutable_head_rows<T>(out.key),
                                         .value = mutable_head_rows<T>(out.value)};
  const HeadBackward<T> head(view, problem, gradients, grad_beta.mutable_data_ptr<A>());
  const int64_t heads = view.heads(), parts = head.key_parts_of_head(), D = p.D();
  const int64_t scratch_size = csrc::core_kernels<T>().backward_scratch(problem);
  if (has_many_heads(heads)) {
    for_each<A>(heads, 2 * work_of(p, view.G), 3 * D, [&](int64_t u, A* row) {
      const ThreadScratch scratch(scratch_size +
                                  head.sums_size() * static_cast<int64_t>(sizeof(A)));
      A* sums = reinterpret_cast<A*>(scratch.data() + scratch_size);
      for (int64_t i = 0; i < parts; ++i) head.attend(u, i, sums, scratch.data());
      for (int64_t i = 0; i < head.query_blocks(); ++i) head.finish_queries(u, i, sums, row);
      head.merge(u, sums);
      for (int64_t i = 0; i < head.key_blocks(); ++i) head.finish_keys(u, i, sums, row);
    });
    return;
  }
  const auto sums = at::empty({heads, head.sums_size()}, p.beta.options());
  const auto sums_of = [&](int64_t u) {
    return sums.template mutable_data_ptr<A>() + u * head.sums_size();
  };
  for_each<A>(heads * parts, 2 * work_of(p, view.G) / parts, 0, [&](int64_t task, A*) {
    const ThreadScratch scratch(scratch_size);
    head.attend(task / parts, task % parts, sums_of(task / parts), scratch.data());
  });
  for_each_head<A>(
      heads, (view.G * p.M() + p.N()) * D, D, [](int64_t) {}, head.query_blocks(),
      [&](int64_t u, int64_t i, A* row) { head.finish_queries(u, i, sums_of(u), row); },
      [&](int64_t u) { head.merge(u, sums_of(u)); }, head.key_blocks(),
      [&](int64_t u, int64_t i, A* row) { head.finish_keys(u, i, sums_of(u), row); });
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
