// The CPU implementation: cuts heads into blocks of rows, and spreads the kernels of csrc/attention
// over threads. Blocks and the order in which their sums are merged are fixed, so results do not
// depend on the number of threads.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/SmallVector.h>

#include "csrc/attention/bn_global.h"
#include "csrc/attention/bn_prefix.h"
#include "ops/attention/normalise.h"
#include "ops/common/head_rows.h"

namespace kktorch::detail {
namespace {

using at::Tensor;
using csrc::Block;
using csrc::Rows;

constexpr int64_t kBlockRows =
    1024;  // a block of float32 rows of 128 channels fills half an L2 cache

int64_t blocks_of(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

Block block_at(int64_t index, int64_t rows) {
  return {index * kBlockRows, std::min(rows, (index + 1) * kBlockRows)};
}

/// A pass over all heads: `begin` on the head, `first` on each of its `first_blocks` blocks,
/// `merge` on the head, then `second` on each of its `second_blocks` blocks. Whole heads are tasks
/// where they are many, so that a head stays in cache from phase to phase; otherwise blocks are.
template <typename A, typename Begin, typename First, typename Merge, typename Second>
void for_each_head(int64_t heads, int64_t elements, int64_t D, const Begin& begin,
                   int64_t first_blocks, const First& first, const Merge& merge,
                   int64_t second_blocks, const Second& second) {
  const int64_t scratch_size = 2 * D;
  if (heads >= 2 * at::get_num_threads() || (first_blocks == 1 && second_blocks == 1)) {
    for_each<A>(heads, elements, scratch_size, [&](int64_t head, A* scratch) {
      begin(head);
      for (int64_t b = 0; b < first_blocks; ++b) first(head, b, scratch);
      merge(head);
      for (int64_t b = 0; b < second_blocks; ++b) second(head, b, scratch);
    });
    return;
  }
  const int64_t block_elements = elements / std::max(first_blocks, second_blocks);
  for (int64_t head = 0; head < heads; ++head) begin(head);
  for_each<A>(heads * first_blocks, block_elements, scratch_size,
              [&](int64_t u, A* scratch) { first(u / first_blocks, u % first_blocks, scratch); });
  for (int64_t head = 0; head < heads; ++head) merge(head);
  for_each<A>(heads * second_blocks, block_elements, scratch_size, [&](int64_t u, A* scratch) {
    second(u / second_blocks, u % second_blocks, scratch);
  });
}

/// Typed views of a problem, by key head u = b Hk + hk.
template <typename T>
struct View {
  using A = csrc::acc_t<T>;

  View(const AttentionProblem& problem, const Tensor& statistics)
      : p(problem),
        Hk(p.Hk()),
        G(p.H() / p.Hk()),
        D(p.D()),
        weight_data(p.key_weight.defined() ? p.key_weight.const_data_ptr<A>() : nullptr),
        beta(p.beta.const_data_ptr<A>()),
        statistics_data(statistics.data_ptr<A>()),
        statistics_stride(statistics.stride(0)) {}

  int64_t heads() const { return p.B() * Hk; }
  const A* weight(int64_t u) const { return weight_data ? weight_data + u / Hk * p.N() : nullptr; }
  csrc::Keys<T> keys(int64_t u) const { return {rows_of<T>(p.key, u / Hk, u % Hk), weight(u), D}; }
  csrc::KeyStatistics<A> statistics(int64_t u) const {
    A* data = statistics_data + u / Hk * statistics_stride + u % Hk * 3 * D;
    return {data, data + D, data + 2 * D};
  }
  int64_t query_head(int64_t u, int64_t g) const { return u % Hk * G + g; }

  const AttentionProblem& p;
  int64_t Hk, G, D;
  const A *weight_data, *beta;
  A* statistics_data;
  int64_t statistics_stride;  // between samples; heads may be a slice
};

NormalisedOperands empty_operands(const AttentionProblem& p) {
  return {at::empty(p.query.sizes(), p.query.options()), at::empty(p.key.sizes(), p.key.options())};
}

// ---- global statistics ----

/// Fills the operands; with `compute` also the statistics, else these are read.
template <typename T>
void global_operands(const AttentionProblem& p, const Tensor& statistics, bool compute,
                     const NormalisedOperands& out) {
  using A = csrc::acc_t<T>;
  const View<T> view(p, statistics);
  const auto& kernels = csrc::global_kernels<T>();
  const int64_t D = p.D(), M = p.M(), N = p.N(), key_blocks = compute ? blocks_of(N) : 0;
  const int64_t query_blocks = blocks_of(M) * view.G, heads = view.heads();
  const int64_t stride = csrc::block_moments_size(D);
  const auto moments = at::empty({heads, key_blocks, stride}, p.beta.options());
  A* const moments_data = moments.mutable_data_ptr<A>();
  const auto shift = [&](int64_t u) {
    if (compute) csrc::first_valid_key(view.keys(u), N, view.statistics(u).shift);
  };
  const auto measure = [&](int64_t u, int64_t block, A* scratch) {
    kernels.moments(view.keys(u), block_at(block, N), view.statistics(u).shift,
                    moments_data + (u * key_blocks + block) * stride, scratch);
  };
  const auto merge = [&](int64_t u) {
    if (compute)
      csrc::merge_moments<A>(moments_data + u * key_blocks * stride, key_blocks, D,
                             csrc::several_keys(view.weight(u), N), p.eps, p.use_std,
                             view.statistics(u));
  };
  // The blocks of a key head, then those of its G query heads.
  const auto normalise = [&](int64_t u, int64_t block, A* scratch) {
    const int64_t b = u / view.Hk, own = blocks_of(N);
    if (block < own) {
      kernels.normalise_keys(view.keys(u), block_at(block, N), view.statistics(u),
                             mutable_rows_of<T>(out.key, b, u % view.Hk), scratch);
      return;
    }
    const int64_t per_head = blocks_of(M), g = (block - own) / per_head;
    const int64_t h = view.query_head(u, g);
    kernels.normalise_queries(rows_of<T>(p.query, b, h), block_at((block - own) % per_head, M), D,
                              view.beta[h], view.statistics(u), mutable_rows_of<T>(out.query, b, h),
                              scratch);
  };
  for_each_head<A>(heads, (2 * N + view.G * M) * D, D, shift, key_blocks, measure, merge,
                   blocks_of(N) + query_blocks, normalise);
}

/// Sums of a group of query heads, as the key gradient needs them, and the gradient of beta for one
/// sample.
template <typename T>
void merge_query_sums(const View<T>& view, int64_t u, const csrc::acc_t<T>* block_sums,
                      int64_t blocks, csrc::acc_t<T>* group_sums, csrc::acc_t<T>* grad_beta) {
  using A = csrc::acc_t<T>;
  const int64_t D = view.D;
  const auto statistics = view.statistics(u);
  std::fill_n(group_sums, 2 * D, A{0});
  for (int64_t g = 0; g < view.G; ++g) {
    const A beta = view.beta[view.query_head(u, g)];
    A beta_sum = 0;
    for (int64_t d = 0; d < D; ++d) {
      A shift = 0, scale = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        shift += block_sums[(g * blocks + block) * 2 * D + d];
        scale += block_sums[(g * blocks + block) * 2 * D + D + d];
      }
      group_sums[d] += beta * shift;
      if (view.p.use_std) group_sums[D + d] += scale;
      beta_sum += (statistics.shift[d] + statistics.mean[d]) * statistics.rstd[d] * shift;
    }
    grad_beta[g] = -beta_sum;
  }
}

template <typename T>
void global_backward(const AttentionProblem& p, const NormalisedOperands& operands,
                     const Tensor& statistics, const Tensor& grad_query, const Tensor& grad_key,
                     const Tensor& grad_beta /* [B, H] */) {
  using A = csrc::acc_t<T>;
  const View<T> view(p, statistics);
  const auto& kernels = csrc::global_kernels<T>();
  const int64_t D = p.D(), M = p.M(), N = p.N(), blocks = blocks_of(M), heads = view.heads();
  const int64_t query_blocks = view.G * blocks;
  const auto sums = at::empty({heads, query_blocks + 1, 2, D}, p.beta.options());
  A* const sums_data = sums.template mutable_data_ptr<A>();
  const auto sums_at = [&](int64_t u, int64_t block) {  // the last one holds those of the group
    return sums_data + (u * (query_blocks + 1) + block) * 2 * D;
  };
  const auto queries = [&](int64_t u, int64_t block, A* scratch) {
    const int64_t b = u / view.Hk, h = view.query_head(u, block / blocks);
    A* out = sums_at(u, block);
    kernels.query_gradient(rows_of<T>(operands.query, b, h), block_at(block % blocks, M), D,
                           view.statistics(u).rstd, mutable_rows_of<T>(grad_query, b, h),
                           {out, out + D}, scratch);
  };
  const auto merge = [&](int64_t u) {
    merge_query_sums(view, u, sums_at(u, 0), blocks, sums_at(u, query_blocks),
                     grad_beta.mutable_data_ptr<A>() + u * view.G);
  };
  const auto total = p.key_weight.defined() ? p.key_weight.sum(1) : Tensor();  // [B]
  const A* const total_data = total.defined() ? total.const_data_ptr<A>() : nullptr;
  const auto keys = [&](int64_t u, int64_t block, A* scratch) {
    const int64_t b = u / view.Hk, hk = u % view.Hk;
    A* group = sums_at(u, query_blocks);
    kernels.key_gradient(rows_of<T>(operands.key, b, hk), view.weight(u),
                         total_data ? total_data[b] : static_cast<A>(N), block_at(block, N), D,
                         view.statistics(u).rstd, {group, group + D},
                         mutable_rows_of<T>(grad_key, b, hk), scratch);
  };
  const auto nothing = [](int64_t) {};
  for_each_head<A>(heads, (view.G * M + N) * D, D, nothing, query_blocks, queries, merge,
                   blocks_of(N), keys);
}

// ---- prefix statistics; T is the accumulation type ----

/// f(head, u, scratch) for every key head.
template <typename T, typename F>
void for_each_prefix_head(const AttentionProblem& p, const View<T>& view, int64_t scratch_size,
                          const F& f) {
  for_each<T>(view.heads(), (view.G * p.M() + p.N()) * p.D(), scratch_size,
              [&](int64_t u, T* scratch) {
                c10::SmallVector<Rows<const T>, 16> query;
                for (int64_t g = 0; g < view.G; ++g)
                  query.push_back(rows_of<T>(p.query, u / view.Hk, view.query_head(u, g)));
                const csrc::PrefixHead<T> head{.key = rows_of<T>(p.key, u / view.Hk, u % view.Hk),
                                               .weight = view.weight(u),
                                               .shift = view.statistics(u).shift,
                                               .beta = view.beta + view.query_head(u, 0),
                                               .query = query.data(),
                                               .G = view.G,
                                               .M = p.M(),
                                               .N = p.N(),
                                               .D = p.D(),
                                               .query_offset = p.query_offset,
                                               .eps = static_cast<T>(p.eps),
                                               .use_std = p.use_std};
                f(head, u, scratch);
              });
}

template <typename T>
c10::SmallVector<Rows<T>, 16> group_rows(const Tensor& t, const View<T>& view, int64_t u) {
  c10::SmallVector<Rows<T>, 16> rows;
  for (int64_t g = 0; g < view.G; ++g)
    rows.push_back(mutable_rows_of<T>(t, u / view.Hk, view.query_head(u, g)));
  return rows;
}

template <typename T>
void prefix_operands(const AttentionProblem& p, const Tensor& statistics, bool compute,
                     const NormalisedOperands& out) {
  const View<T> view(p, statistics);
  const auto& kernels = csrc::prefix_kernels<T>();
  for_each_prefix_head<T>(p, view, 3 * p.D(), [&](const auto& head, int64_t u, T* scratch) {
    if (compute) csrc::first_valid_key(view.keys(u), p.N(), view.statistics(u).shift);
    kernels.shift_keys(head, mutable_rows_of<T>(out.key, u / view.Hk, u % view.Hk));
    kernels.prepare_queries(head, group_rows<T>(out.query, view, u).data(), scratch);
  });
}

template <typename T>
void prefix_backward(const AttentionProblem& p, const NormalisedOperands& operands,
                     const Tensor& statistics, const Tensor& grad_query, const Tensor& grad_key,
                     const Tensor& grad_beta /* [B, H] */) {
  const View<T> view(p, statistics);
  const auto& kernels = csrc::prefix_kernels<T>();
  const int64_t scratch_size = (3 * p.M() + 4) * p.D();
  for_each_prefix_head<T>(p, view, scratch_size, [&](const auto& head, int64_t u, T* scratch) {
    const int64_t b = u / view.Hk, hk = u % view.Hk;
    c10::SmallVector<Rows<const T>, 16> q_tilde;
    for (int64_t g = 0; g < view.G; ++g)
      q_tilde.push_back(rows_of<T>(operands.query, b, view.query_head(u, g)));
    kernels.gradient(head, rows_of<T>(operands.key, b, hk), q_tilde.data(),
                     group_rows<T>(grad_query, view, u).data(), mutable_rows_of<T>(grad_key, b, hk),
                     grad_beta.mutable_data_ptr<T>() + u * view.G, scratch);
  });
}

// ---- the interface ----

void fill_operands(const AttentionProblem& p, const Tensor& statistics, bool compute,
                   const NormalisedOperands& out) {
  if (p.prefix) {
    AT_DISPATCH_FLOATING_TYPES(p.query.scalar_type(), "attention_bn",
                               [&] { prefix_operands<scalar_t>(p, statistics, compute, out); });
  } else {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, p.query.scalar_type(), "attention_bn",
        [&] { global_operands<scalar_t>(p, statistics, compute, out); });
  }
}

NormalisedOperands forward(const AttentionProblem& p, Tensor& statistics) {
  statistics = at::zeros({p.B(), p.Hk(), 3, p.D()}, p.beta.options());
  const auto out = empty_operands(p);
  fill_operands(p, statistics, true, out);
  return out;
}

NormalisedOperands recompute(const AttentionProblem& p, const Tensor& statistics) {
  const auto out = empty_operands(p);
  fill_operands(p, statistics, false, out);
  return out;
}

Tensor backward(const AttentionProblem& p, const NormalisedOperands& operands,
                const Tensor& statistics, Tensor& grad_query, Tensor& grad_key) {
  const auto grad_beta = at::empty({p.B(), p.H()}, p.beta.options());
  if (p.prefix) {
    AT_DISPATCH_FLOATING_TYPES(p.query.scalar_type(), "_attention_bn_backward", [&] {
      prefix_backward<scalar_t>(p, operands, statistics, grad_query, grad_key, grad_beta);
    });
  } else {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, p.query.scalar_type(), "_attention_bn_backward", [&] {
          global_backward<scalar_t>(p, operands, statistics, grad_query, grad_key, grad_beta);
        });
  }
  return grad_beta.sum(0);
}

}  // namespace

const Normaliser& cpu_normaliser() {
  static constexpr Normaliser normaliser{forward, recompute, backward};
  return normaliser;
}

}  // namespace kktorch::detail
