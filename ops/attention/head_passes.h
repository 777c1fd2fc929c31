#pragma once
// Passes over the heads of a problem on the CPU: typed views, blocks of rows, the statistics of the
// keys and the sums over queries. Blocks and the order in which their sums are merged are fixed, so
// results do not depend on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "csrc/attention/bn_global.h"
#include "ops/attention/problem.h"
#include "ops/common/head_rows.h"

namespace kktorch::detail {

constexpr int64_t kBlockRows =
    1024;  // a block of float32 rows of 128 channels fills half an L2 cache

inline int64_t blocks_of(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

inline csrc::Block block_at(int64_t index, int64_t rows) {
  return {index * kBlockRows, std::min(rows, (index + 1) * kBlockRows)};
}

/// Whether whole heads keep all threads busy.
inline bool has_many_heads(int64_t heads) { return heads >= 2 * at::get_num_threads(); }

/// A pass over all heads: `begin` on the head, `first` on each of its `first_blocks` blocks,
/// `merge` on the head, then `second` on each of its `second_blocks` blocks. Whole heads are tasks
/// where they are many, so that a head stays in cache from phase to phase; otherwise blocks are.
template <typename A, typename Begin, typename First, typename Merge, typename Second>
void for_each_head(int64_t heads, int64_t elements, int64_t D, const Begin& begin,
                   int64_t first_blocks, const First& first, const Merge& merge,
                   int64_t second_blocks, const Second& second) {
  const int64_t scratch_size = 3 * D;
  if (has_many_heads(heads) || (first_blocks == 1 && second_blocks == 1)) {
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
struct HeadViews {
  using A = csrc::acc_t<T>;

  HeadViews(const AttentionProblem& problem, const at::Tensor& statistics)
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

/// The statistics of the keys, head by head: `begin`, then every `block`, then `merge`. Without
/// `compute` there are no blocks, and the statistics stay as they are.
template <typename T>
struct KeyMeasurement {
  using A = csrc::acc_t<T>;

  KeyMeasurement(const HeadViews<T>& all, bool compute_them)
      : view(all), compute(compute_them), blocks(compute_them ? blocks_of(all.p.N()) : 0) {
    moments =
        at::empty({view.heads(), blocks, csrc::block_moments_size(view.D)}, view.p.beta.options());
  }

  A* at(int64_t u, int64_t block) const {
    return moments.template mutable_data_ptr<A>() +
           (u * blocks + block) * csrc::block_moments_size(view.D);
  }

  void begin(int64_t u) const {
    if (compute) csrc::first_valid_key(view.keys(u), view.p.N(), view.statistics(u).shift);
  }
  void block(int64_t u, int64_t block, A* scratch /* [2 D] */) const {
    csrc::global_kernels<T>().moments(view.keys(u), block_at(block, view.p.N()),
                                      view.statistics(u).shift, at(u, block), scratch);
  }
  void merge(int64_t u) const {
    if (compute)
      csrc::merge_moments<A>(at(u, 0), blocks, view.D,
                             csrc::several_keys(view.weight(u), view.p.N()), view.p.eps,
                             view.p.use_std, view.statistics(u));
  }

  const HeadViews<T>& view;
  bool compute;
  int64_t blocks;
  at::Tensor moments;
};

/// Sums of a group of query heads, as the key gradient needs them, and the gradient of beta for one
/// sample.
template <typename T>
void merge_query_sums(const HeadViews<T>& view, int64_t u, const csrc::acc_t<T>* block_sums,
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

}  // namespace kktorch::detail
