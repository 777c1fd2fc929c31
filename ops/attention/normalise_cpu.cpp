// The CPU implementation: cuts heads into blocks of rows, and spreads the kernels of csrc/attention
// over threads. Blocks and the order in which their sums are merged are fixed, so results do not
// depend on the number of threads.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/SmallVector.h>

#include "csrc/attention/bn_global.h"
#include "csrc/attention/bn_prefix.h"
#include "ops/attention/head_passes.h"
#include "ops/attention/normalise.h"

namespace kktorch::detail {
namespace {

using at::Tensor;
using csrc::Rows;

NormalisedOperands empty_operands(const AttentionProblem& p) {
  return {at::empty(p.query.sizes(), p.query.options()), at::empty(p.key.sizes(), p.key.options())};
}

// ---- global statistics ----

/// Fills the operands; with `compute` also the statistics, else these are read.
template <typename T>
void global_operands(const AttentionProblem& p, const Tensor& statistics, bool compute,
                     const NormalisedOperands& out) {
  using A = csrc::acc_t<T>;
  const auto view = head_views<T>(p, statistics);
  const auto moments = moments_of<T>(view, compute, p);
  const KeyMeasurement<T> measurement{view, compute, moments.template mutable_data_ptr<A>()};
  const auto& kernels = csrc::global_kernels<T>();
  const int64_t D = p.D(), M = p.M(), N = p.N();
  const int64_t query_blocks = blocks_of(M) * view.G(), heads = view.heads();
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
  for_each_head<A>(
      heads, (2 * N + view.G() * M) * D, D, [&](int64_t u) { measurement.begin(u); },
      measurement.blocks,
      [&](int64_t u, int64_t block, A* scratch) { measurement.block(u, block, scratch); },
      [&](int64_t u) { measurement.merge(u); }, blocks_of(N) + query_blocks, normalise);
}

template <typename T>
void global_backward(const AttentionProblem& p, const NormalisedOperands& operands,
                     const Tensor& statistics, const Tensor& grad_query, const Tensor& grad_key,
                     const Tensor& grad_beta /* [B, H] */) {
  using A = csrc::acc_t<T>;
  const auto view = head_views<T>(p, statistics);
  const auto& kernels = csrc::global_kernels<T>();
  const int64_t D = p.D(), M = p.M(), N = p.N(), blocks = blocks_of(M), heads = view.heads();
  const int64_t query_blocks = view.G() * blocks;
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
                     grad_beta.mutable_data_ptr<A>() + u * view.G());
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
  for_each_head<A>(heads, (view.G() * M + N) * D, D, nothing, query_blocks, queries, merge,
                   blocks_of(N), keys);
}

// ---- prefix statistics; T is the accumulation type ----

/// f(head, u, scratch) for every key head.
template <typename T, typename F>
void for_each_prefix_head(const AttentionProblem& p, const HeadViews<T>& view, int64_t scratch_size,
                          const F& f) {
  for_each<T>(view.heads(), (view.G() * p.M() + p.N()) * p.D(), scratch_size,
              [&](int64_t u, T* scratch) {
                c10::SmallVector<Rows<const T>, 16> query;
                for (int64_t g = 0; g < view.G(); ++g)
                  query.push_back(rows_of<T>(p.query, u / view.Hk, view.query_head(u, g)));
                const csrc::PrefixHead<T> head{.key = rows_of<T>(p.key, u / view.Hk, u % view.Hk),
                                               .weight = view.weight(u),
                                               .shift = view.statistics(u).shift,
                                               .beta = view.beta + view.query_head(u, 0),
                                               .query = query.data(),
                                               .G = view.G(),
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
c10::SmallVector<Rows<T>, 16> group_rows(const Tensor& t, const HeadViews<T>& view, int64_t u) {
  c10::SmallVector<Rows<T>, 16> rows;
  for (int64_t g = 0; g < view.G(); ++g)
    rows.push_back(mutable_rows_of<T>(t, u / view.Hk, view.query_head(u, g)));
  return rows;
}

template <typename T>
void prefix_operands(const AttentionProblem& p, const Tensor& statistics, bool compute,
                     const NormalisedOperands& out) {
  const auto view = head_views<T>(p, statistics);
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
  const auto view = head_views<T>(p, statistics);
  const auto& kernels = csrc::prefix_kernels<T>();
  const int64_t scratch_size = (3 * p.M() + 4) * p.D();
  for_each_prefix_head<T>(p, view, scratch_size, [&](const auto& head, int64_t u, T* scratch) {
    const int64_t b = u / view.Hk, hk = u % view.Hk;
    c10::SmallVector<Rows<const T>, 16> q_tilde;
    for (int64_t g = 0; g < view.G(); ++g)
      q_tilde.push_back(rows_of<T>(operands.query, b, view.query_head(u, g)));
    kernels.gradient(head, rows_of<T>(operands.key, b, hk), q_tilde.data(),
                     group_rows<T>(grad_query, view, u).data(), mutable_rows_of<T>(grad_key, b, hk),
                     grad_beta.mutable_data_ptr<T>() + u * view.G(), scratch);
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
