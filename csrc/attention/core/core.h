#pragma once
// The attention core on the CPU: softmax attention of one problem, forward and backward, in blocks
// that stay in the L1 and L2 caches. Torch-free. With the statistics x0, m, r of a key head,
//
//     q^ = ((q - beta x0) - beta m) r,    c = ((k - x0) - m) r
//     S = scale q^ c^T + ln n + mask,     P = softmax(S),     out = P v
//
// where q^ and c exist only in the packed blocks. Backward (derivation: ops/attention_bn.cpp)
// yields the gradients of q, k and v, and of beta. Any strides between rows; channels are
// contiguous. Results do not depend on how callers spread the calls over threads.
// docs/attention_core.md explains the blocks.
#include <cstdint>

#include "csrc/attention/bn_global.h"
#include "csrc/common/types.h"

namespace kktorch::csrc {

/// What is added to the logits, [B, H, M, N] by strides (0 where it broadcasts), columns
/// contiguous: nothing, or -inf where `visible` is false, or `bias`.
template <typename A>
struct LogitMask {
  const bool* visible;
  const A* bias;
  int64_t batch_stride, head_stride, row_stride;
};

template <typename T>
struct CoreProblem {
  using A = acc_t<T>;

  int64_t B, H, Hk, M, N, D, Dv;  // as in AttentionProblem; H a multiple of Hk
  HeadRows<const T> query, key, value;
  HeadRows<A> statistics;  // rows x0, m, r of each key head
  const A* beta;           // [H]
  A scale;
  const A* weight;  // [B, N] key weights, 0 = not read; null where every key weighs 1
  LogitMask<A> mask;
  bool is_causal;  // row i sees the keys j <= query_offset + i
  int64_t query_offset;
  bool split_floats;  // float32 may be multiplied as two bfloat16, where the machine gains by that

  int64_t group() const { return H / Hk; }
  const A* weight_of(int64_t b) const { return weight ? weight + b * N : nullptr; }
  KeyStatistics<A> statistics_of(int64_t b, int64_t hk) const {
    const auto rows = statistics.of(b, hk);
    return {rows[0], rows[1], rows[2]};
  }
};

/// Results of forward: out, and the natural log-sum-exp of each row (rows of width 1).
template <typename T>
struct CoreResult {
  HeadRows<T> out;
  HeadRows<acc_t<T>> logsumexp;
};

/// Operands and results of backward.
template <typename T>
struct CoreGradients {
  HeadRows<const T> grad_out, out;
  HeadRows<const acc_t<T>> logsumexp;
  HeadRows<T> query, key, value;
};

/// Sums of backward that need more than one block of keys, all in accumulation type, for one key
/// head. `query`: [parts, G, M, D] gradients of q^, a summand for each part of the keys; `key`:
/// [N, D] gradient of c.
template <typename A>
struct CoreSums {
  A *query, *key;
};

/// Kernels for storage type T. Scratch is aligned to 64 bytes; its sizes are in bytes.
template <typename T>
struct CoreKernels {
  using A = acc_t<T>;

  /// Rows `queries` of query head h of sample b.
  void (*forward)(const CoreProblem<T>& problem, const CoreResult<T>& result, int64_t b, int64_t h,
                  Block queries, void* scratch);
  int64_t (*forward_scratch)(const CoreProblem<T>& problem);

  /// The same rows over the keys `keys` alone: `sums` [rows, Dv + 2] are for `join_parts`.
  void (*forward_part)(const CoreProblem<T>& problem, int64_t b, int64_t h, Block queries,
                       Block keys, A* sums, void* scratch);
  /// Results of the rows `queries` from their sums over all `parts` of the keys,
  /// [parts, rows, Dv + 2].
  void (*join_parts)(const CoreProblem<T>& problem, const CoreResult<T>& result, int64_t b,
                     int64_t h, Block queries, const A* sums, int64_t parts, void* scratch);

  /// The share of the keys `keys` of key head hk of sample b: their gradients of v and c, and their
  /// summand of the gradient of q^, [G, M, D].
  void (*backward)(const CoreProblem<T>& problem, const CoreGradients<T>& gradients, int64_t b,
                   int64_t hk, Block keys, A* grad_query, A* grad_key, void* scratch);
  int64_t (*backward_scratch)(const CoreProblem<T>& problem);

  /// Gradients of the rows `queries` of query head h from the `parts` summands ([rows, D] each,
  /// `stride` apart, from the first row of the block on), and their column sums.
  void (*finish_queries)(const CoreProblem<T>& problem, const CoreGradients<T>& gradients,
                         int64_t b, int64_t h, Block queries, const A* summands, int64_t parts,
                         int64_t stride, QuerySums<A> sums);

  /// Gradients of the keys `keys` from those of c ([rows, D] from the first key of the block on).
  /// `sums` are those of all queries of the group, the shift sum weighted by beta.
  void (*finish_keys)(const CoreProblem<T>& problem, const CoreGradients<T>& gradients, int64_t b,
                      int64_t hk, Block keys, const A* grad_key, A total_weight, QuerySums<A> sums);
};

/// The table of the CPU tier in use; T is double, float, c10::BFloat16 or c10::Half.
template <typename T>
const CoreKernels<T>& core_kernels();

/// Widths that the blocks are made for.
constexpr int64_t kCoreMaxWidth = 256;

}  // namespace kktorch::csrc
