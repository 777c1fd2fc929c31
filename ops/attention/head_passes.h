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

/// What the passes read of a problem, by key head u = b Hk + hk.
template <typename T>
struct HeadViews {
  using A = csrc::acc_t<T>;

  int64_t B, H, Hk, M, N, D;
  csrc::HeadRows<const T> key;
  const A *weight_data, *beta;
  csrc::HeadRows<A> statistics_rows;  // x0, m, r of each key head
  double eps;
  bool use_std;

  int64_t heads() const { return B * Hk; }
  int64_t G() const { return H / Hk; }
  const A* weight(int64_t u) const { return weight_data ? weight_data + u / Hk * N : nullptr; }
  csrc::Keys<T> keys(int64_t u) const { return {key.of(u / Hk, u % Hk), weight(u), D}; }
  csrc::KeyStatistics<A> statistics(int64_t u) const {
    const auto rows = statistics_rows.of(u / Hk, u % Hk);
    return {rows[0], rows[1], rows[2]};
  }
  int64_t query_head(int64_t u, int64_t g) const { return u % Hk * G() + g; }
};

template <typename T>
HeadViews<T> head_views(const AttentionProblem& p, const at::Tensor& statistics) {
  using A = csrc::acc_t<T>;
  return {.B = p.B(),
          .H = p.H(),
          .Hk = p.Hk(),
          .M = p.M(),
          .N = p.N(),
          .D = p.D(),
          .key = head_rows<T>(p.key),
          .weight_data = p.key_weight.defined() ? p.key_weight.const_data_ptr<A>() : nullptr,
          .beta = p.beta.const_data_ptr<A>(),
          .statistics_rows = mutable_head_rows<A>(statistics),
          .eps = p.eps,
          .use_std = p.use_std};
}

/// The statistics of the keys, head by head: `begin`, then every `block`, then `merge`. Without
/// `compute` there are no blocks, and the statistics stay as they are.
template <typename T>
struct KeyMeasurement {
  using A = csrc::acc_t<T>;

  static int64_t moments_size(int64_t N, int64_t D) {
    return blocks_of(N) * csrc::block_moments_size(D);
  }

  A* at(int64_t u, int64_t block) const {
    return moments + (u * blocks + block) * csrc::block_moments_size(view.D);
  }

  void begin(int64_t u) const {
    if (compute) csrc::first_valid_key(view.keys(u), view.N, view.statistics(u).shift);
  }
  void block(int64_t u, int64_t block, A* scratch /* [2 D] */) const {
    csrc::global_kernels<T>().moments(view.keys(u), block_at(block, view.N),
                                      view.statistics(u).shift, at(u, block), scratch);
  }
  void merge(int64_t u) const {
    if (compute)
      csrc::merge_moments<A>(at(u, 0), blocks, view.D, csrc::several_keys(view.weight(u), view.N),
                             static_cast<A>(view.eps), view.use_std, view.statistics(u));
  }

  const HeadViews<T>& view;
  bool compute;
  A* moments;  // [heads, moments_size]
  int64_t blocks = compute ? blocks_of(view.N) : 0;
};

/// Memory for the moments of all heads.
template <typename T>
at::Tensor moments_of(const HeadViews<T>& view, bool compute, const AttentionProblem& p) {
  const int64_t size = compute ? KeyMeasurement<T>::moments_size(view.N, view.D) : 0;
  return at::empty({view.heads(), size}, p.beta.options());
}

/// Sums of a group of query heads, as the key gradient needs them, and the gradient of beta for one
/// sample.
template <typename T>
void merge_query_sums(const HeadViews<T>& view, int64_t u, const csrc::acc_t<T>* block_sums,
                      int64_t blocks, csrc::acc_t<T>* group_sums, csrc::acc_t<T>* grad_beta) {
  using A = csrc::acc_t<T>;
  const int64_t D = view.D;
  const auto statistics = view.statistics(u);
  std::fill_n(group_sums, 2 * D, A{0});
  for (int64_t g = 0; g < view.G(); ++g) {
    const A beta = view.beta[view.query_head(u, g)];
    A beta_sum = 0;
    for (int64_t d = 0; d < D; ++d) {
      A shift = 0, scale = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        shift += block_sums[(g * blocks + block) * 2 * D + d];
        scale += block_sums[(g * blocks + block) * 2 * D + D + d];
      }
      group_sums[d] += beta * shift;
      if (view.use_std) group_sums[D + d] += scale;
      beta_sum += (statistics.shift[d] + statistics.mean[d]) * statistics.rstd[d] * shift;
    }
    grad_beta[g] = -beta_sum;
  }
}

}  // namespace kktorch::detail
