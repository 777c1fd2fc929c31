#include "ops/attention/pooled_heads.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>

#include "csrc/attention/core/scratch.h"
#include "csrc/common/parallel.h"
#include "ops/attention/core_heads.h"

namespace kktorch::detail {
namespace {

using at::Tensor;
using csrc::HeadRows;
using csrc::Rows;
using csrc::Scratch;

/// The heads from (b, h) on, as heads of a problem of their own.
template <typename V>
HeadRows<V> from_head(HeadRows<V> rows, int64_t b, int64_t h) {
  rows.data = rows.of(b, h).data;
  return rows;
}

/// One key head of one sample with its query heads: a problem of its own for the kernels. Windows
/// of several tokens are pooled into scratch memory; single tokens are read where they are. From
/// null scratch nothing but the sizes is of interest.
template <typename T>
class PooledHead {
  using A = csrc::acc_t<T>;

 public:
  PooledHead(const PooledHeads& all, const csrc::CoreProblem<T>& tokens, int64_t b, int64_t hk,
             Scratch& scratch)
      : all_(all),
        tokens_(tokens),
        b_(b),
        hk_(hk),
        windows_(all.windows(hk)),
        is_pooled_(all.scales[hk] > 1),
        problem_(tokens) {
    const int64_t N = windows_.count(), G = tokens.group();
    problem_.B = problem_.Hk = 1, problem_.H = G, problem_.N = N;
    problem_.query = from_head(tokens.query, b, hk * G);
    problem_.statistics = from_head(tokens.statistics, b, hk);
    problem_.beta += hk * G;
    problem_.key = from_head(tokens.key, b, hk);
    problem_.value = from_head(tokens.value, b, hk);
    if (is_pooled_) {
      count_ = scratch.take<float>(N);
      problem_.key = as_head(keys_ = take_rows(scratch, tokens.D));
      problem_.value = as_head(values_ = take_rows(scratch, tokens.Dv));
    }
    if (all.padding.defined() || (all.count_weighting && is_pooled_))
      problem_.weight = weight_ = scratch.take<A>(N);
    moments_ = scratch.take<A>(KeyMeasurement<T>::moments_size(N, tokens.D));
    row_ = scratch.take<A>(2 * std::max(tokens.D, tokens.Dv));
  }

  const csrc::CoreProblem<T>& problem() const { return problem_; }
  bool is_pooled() const { return is_pooled_; }

  /// Rows of windows in scratch memory.
  Rows<T> take_rows(Scratch& scratch, int64_t width) const {
    return {scratch.take<T>(windows_.count() * width), width};
  }
  static HeadRows<T> as_mutable_head(Rows<T> rows) { return {rows.data, 0, 0, rows.stride}; }

  HeadViews<T> view() const {
    return {.B = 1,
            .H = problem_.H,
            .Hk = 1,
            .M = problem_.M,
            .N = problem_.N,
            .D = problem_.D,
            .key = problem_.key,
            .weight_data = problem_.weight,
            .beta = problem_.beta,
            .statistics_rows = problem_.statistics,
            .eps = all_.problem.eps,
            .use_std = all_.problem.use_std};
  }

  /// Pools keys and values, and weighs them.
  void load() const {
    if (is_pooled_) {
      for (int64_t w = 0; w < problem_.N; ++w) count_[w] = valid_tokens(w);
      pool(tokens_.key.of(b_, hk_), keys_, tokens_.D);
      pool(tokens_.value.of(b_, hk_), values_, tokens_.Dv);
    }
    if (!weight_) return;
    for (int64_t w = 0; w < problem_.N; ++w) {
      const float valid = is_pooled_ ? count_[w] : valid_tokens(w);
      weight_[w] = all_.count_weighting && is_pooled_ ? valid : valid > 0;
    }
  }

  /// Fills the statistics of the head; without BN they leave queries and keys as they are.
  void measure() const {
    const auto v = view();
    const auto statistics = v.statistics(0);
    if (all_.problem.plain) {
      std::fill_n(statistics.shift, v.D, A{0});
      std::fill_n(statistics.mean, v.D, A{0});
      std::fill_n(statistics.rstd, v.D, csrc::several_keys(v.weight(0), v.N) ? A{1} : A{0});
      return;
    }
    const KeyMeasurement<T> measurement{v, true, moments_};
    measurement.begin(0);
    for (int64_t block = 0; block < measurement.blocks; ++block) measurement.block(0, block, row_);
    measurement.merge(0);
  }

  A total_weight() const {
    return weight_ ? std::accumulate(weight_, weight_ + problem_.N, A{0})
                   : static_cast<A>(problem_.N);
  }

  /// Gradients of windows become those of their tokens.
  void spread(Rows<T> of_windows, Rows<T> of_tokens, int64_t width) const {
    csrc::pool_kernels<T>().backward({of_windows.data, of_windows.stride}, padding(), count_,
                                     windows_, 0, problem_.N, width, of_tokens, row_);
    for (int64_t j = windows_.begin(problem_.N); j < windows_.length; ++j)  // in no window
      std::fill_n(of_tokens[j], width, T(0));
  }

 private:
  static HeadRows<const T> as_head(Rows<T> rows) { return {rows.data, 0, 0, rows.stride}; }

  const bool* padding() const {
    return all_.padding.defined() ? all_.padding.const_data_ptr<bool>() + b_ * tokens_.N : nullptr;
  }
  float valid_tokens(int64_t w) const {
    const bool* ignored = padding();
    const int64_t begin = windows_.begin(w), end = windows_.end(w);
    return static_cast<float>(ignored ? std::count(ignored + begin, ignored + end, false)
                                      : end - begin);
  }
  void pool(Rows<const T> from, Rows<T> to, int64_t width) const {
    csrc::pool_kernels<T>().forward(from, padding(), count_, windows_, 0, problem_.N, width, to,
                                    row_);
  }

  const PooledHeads& all_;
  const csrc::CoreProblem<T>& tokens_;
  int64_t b_, hk_;
  csrc::Windows windows_;
  bool is_pooled_;
  csrc::CoreProblem<T> problem_;
  Rows<T> keys_{}, values_{};
  float* count_ = nullptr;
  A *weight_ = nullptr, *moments_, *row_;
};

/// f(b, hk) for all key heads: the threads take the next one as they get free, those with the most
/// windows first.
template <typename F>
void for_each_longest_first(const PooledHeads& all, const F& f) {
  const int64_t B = all.problem.B(), Hk = all.problem.Hk();
  std::vector<int64_t> order(Hk);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return all.scales[a] < all.scales[b]; });
  csrc::parallel_for(B * Hk, [&](int64_t task) { f(task % B, order[task / B]); });
}

/// The largest of size(scratch, head) over the heads, which differ in their windows.
template <typename T, typename F>
int64_t largest_scratch(const PooledHeads& all, const csrc::CoreProblem<T>& tokens, const F& size) {
  int64_t largest = 0;
  for (int64_t hk = 0; hk < all.problem.Hk(); ++hk) {
    Scratch scratch(nullptr);
    const PooledHead<T> head(all, tokens, 0, hk, scratch);
    largest = std::max(largest, size(scratch, head));
  }
  return largest;
}

template <typename T>
void run_forward(const PooledHeads& all, const Tensor& statistics,
                 const csrc::CoreResult<T>& result) {
  const auto tokens = core_problem<T>(all.problem, statistics, {});
  const auto& kernels = csrc::core_kernels<T>();
  const int64_t size =
      largest_scratch(all, tokens, [&](const Scratch& scratch, const PooledHead<T>& head) {
        return scratch.used() + kernels.forward_scratch(head.problem());
      });
  for_each_longest_first(all, [&](int64_t b, int64_t hk) {
    const ThreadScratch memory(size);
    Scratch scratch(memory.data());
    const PooledHead<T> head(all, tokens, b, hk, scratch);
    head.load();
    head.measure();
    const int64_t G = tokens.group();
    const csrc::CoreResult<T> own{from_head(result.out, b, hk * G),
                                  from_head(result.logsumexp, b, hk * G)};
    for (int64_t g = 0; g < G; ++g)
      kernels.forward(head.problem(), own, 0, g, {0, tokens.M}, scratch.take<std::byte>(0));
  });
}

/// The gradients of a head, and the memory that its backward pass needs.
template <typename T>
struct HeadGradients {
  using A = csrc::acc_t<T>;

  csrc::CoreGradients<T> own;
  Rows<T> keys{}, values{};  // of windows
  A* sums;

  HeadGradients(const PooledHead<T>& head, const csrc::CoreGradients<T>& all, int64_t b, int64_t hk,
                Scratch& scratch)
      : own(all) {
    const auto& p = head.problem();
    const int64_t first = hk * p.H;
    own.grad_out = from_head(all.grad_out, b, first);
    own.out = from_head(all.out, b, first);
    own.logsumexp = from_head(all.logsumexp, b, first);
    own.query = from_head(all.query, b, first);
    own.key = from_head(all.key, b, hk);
    own.value = from_head(all.value, b, hk);
    if (head.is_pooled()) {
      own.key = head.as_mutable_head(keys = head.take_rows(scratch, p.D));
      own.value = head.as_mutable_head(values = head.take_rows(scratch, p.Dv));
    }
    const auto view = head.view();
    sums = scratch.take<A>(HeadBackward<T>(view, p, own, 1, nullptr, nullptr).sums_size());
  }
};

template <typename T>
void run_backward(const PooledHeads& all, const Tensor& statistics,
                  const csrc::CoreGradients<T>& gradients, csrc::acc_t<T>* grad_beta /* [B, H] */) {
  const auto tokens = core_problem<T>(all.problem, statistics, {});
  const auto& kernels = csrc::core_kernels<T>();
  const int64_t size =
      largest_scratch(all, tokens, [&](Scratch& scratch, const PooledHead<T>& head) {
        const HeadGradients<T> grads(head, gradients, 0, 0, scratch);
        return scratch.used() + kernels.backward_scratch(head.problem());
      });
  for_each_longest_first(all, [&](int64_t b, int64_t hk) {
    const ThreadScratch memory(size);
    Scratch scratch(memory.data());
    const PooledHead<T> head(all, tokens, b, hk, scratch);
    const HeadGradients<T> grads(head, gradients, b, hk, scratch);
    head.load();
    const auto view = head.view();
    const auto total = head.total_weight();
    HeadBackward<T>(view, head.problem(), grads.own, 1, &total,
                    grad_beta + b * tokens.H + hk * tokens.group())
        .run(0, grads.sums, scratch.take<std::byte>(0));
    if (!head.is_pooled()) return;
    head.spread(grads.keys, gradients.key.of(b, hk), tokens.D);
    head.spread(grads.values, gradients.value.of(b, hk), tokens.Dv);
  });
}

}  // namespace

AttentionResult pooled_heads_forward(const PooledHeads& all) {
  const auto& p = all.problem;
  const auto acc = p.beta.options();
  const AttentionResult result{empty_heads_last({p.B(), p.H(), p.M(), p.Dv()}, p.query.options()),
                               empty_heads_last({p.B(), p.H(), p.M(), 1}, acc).squeeze(-1),
                               at::empty({p.B(), p.Hk(), 3, p.D()}, acc),
                               {}};
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, p.query.scalar_type(), "attention_sh", [&] {
        run_forward<scalar_t>(all, result.statistics,
                              {mutable_head_rows<scalar_t>(result.out),
                               mutable_head_rows<csrc::acc_t<scalar_t>>(result.logsumexp)});
      });
  return result;
}

AttentionGradients pooled_heads_backward(const PooledHeads& all, const AttentionResult& result,
                                         const Tensor& grad_out) {
  const auto& p = all.problem;
  const auto dtype = p.query.scalar_type();
  const auto like = [](const Tensor& t) { return empty_heads_last(t.sym_sizes(), t.options()); };
  AttentionGradients grads{like(p.query), like(p.key), like(p.value), {}};
  const auto dout = channels_contiguous(grad_out.to(dtype)), out = channels_contiguous(result.out);
  const auto grad_beta = at::empty({p.B(), p.H()}, p.beta.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "_attention_sh_backward", [&] {
    using A = csrc::acc_t<scalar_t>;
    run_backward<scalar_t>(all, result.statistics,
                           {.grad_out = head_rows<scalar_t>(dout),
                            .out = head_rows<scalar_t>(out),
                            .logsumexp = head_rows<A>(result.logsumexp),
                            .query = mutable_head_rows<scalar_t>(grads.query),
                            .key = mutable_head_rows<scalar_t>(grads.key),
                            .value = mutable_head_rows<scalar_t>(grads.value)},
                           grad_beta.mutable_data_ptr<A>());
  });
  grads.beta = grad_beta.sum(0);
  return grads;
}

}  // namespace kktorch::detail
