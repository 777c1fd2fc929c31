#pragma once
// Attention-BN with global statistics on the CPU: everything around the softmax attention, in the
// balanced form
//
//     q^ = (q - beta mu) r,    c^ = (k - mu) r,    logits = scale q^ c^T
//
// and its backward (derivation: ops/attention_bn.cpp). Torch-free. One call works on one head or on
// a block of its rows; the caller spreads calls over threads. Letters: x0 shift (first valid key),
// m mean of k - x0, mu = x0 + m, r = 1/sqrt(variance + eps), n_j weight of key j, D channels.
#include <cstdint>

#include "csrc/common/types.h"

namespace kktorch::csrc {

/// Statistics of one key head, [D] each.
template <typename A>
struct KeyStatistics {
  A *shift, *mean, *rstd;  // x0, m, r
};

/// Moments of a block of shifted keys, packed in [1 + 2 D]: total weight n, mean, m2 = sum n_j (x_j
/// - mean)^2.
constexpr int64_t block_moments_size(int64_t D) { return 1 + 2 * D; }

/// Column sums over queries, [D] each: sum_i dq^_i and sum_i dq^_i q^_i.
template <typename A>
struct QuerySums {
  A *shift, *scale;
};

/// The keys of one head. weight: [N], or null where every key weighs 1.
template <typename T>
struct Keys {
  Rows<const T> rows;
  const acc_t<T>* weight;
  int64_t D;
};

/// A range of rows, [begin, end).
struct Block {
  int64_t begin, end;
};

/// Kernels for storage type T. `scratch` is [2 D] wherever it appears.
template <typename T>
struct GlobalKernels {
  using A = acc_t<T>;

  /// Moments about x0 of the keys of a block, two passes. Keys of weight 0 are not read.
  void (*moments)(const Keys<T>& keys, Block block, const A* shift, A* block_moments, A* scratch);

  /// c^ of the keys of a block; a key of weight 0 gives 0 whatever it holds.
  void (*normalise_keys)(const Keys<T>& keys, Block block, const KeyStatistics<A>& statistics,
                         Rows<T> c_hat, A* scratch);

  /// q^ of the queries of a block.
  void (*normalise_queries)(Rows<const T> query, Block block, int64_t D, A beta,
                            const KeyStatistics<A>& statistics, Rows<T> q_hat, A* scratch);

  /// Turns dq^ into dq = r dq^ in place, and stores the column sums of the block.
  void (*query_gradient)(Rows<const T> q_hat, Block block, int64_t D, const A* rstd, Rows<T> grad,
                         QuerySums<A> sums, A* scratch);

  /// Turns dc^ into dk in place. `sums` are those of all queries of the group, the shift sum
  /// weighted by beta; total_weight = sum_j n_j.
  void (*key_gradient)(Rows<const T> c_hat, const A* weight, A total_weight, Block block, int64_t D,
                       const A* rstd, QuerySums<A> sums, Rows<T> grad, A* scratch);
};

/// The table of the CPU tier in use; T is double, float, c10::BFloat16 or c10::Half.
template <typename T>
const GlobalKernels<T>& global_kernels();

/// x0: the first key of positive weight among N; 0 if there is none.
template <typename T>
void first_valid_key(const Keys<T>& keys, int64_t N, acc_t<T>* shift);

/// Merges the moments of consecutive blocks, in order, into m and r. Fewer than two keys of
/// positive weight give r = 0: the softmax is constant then, and its gradients must be exactly 0
/// although 1/eps is large.
template <typename A>
void merge_moments(const A* block_moments, int64_t blocks, int64_t D, bool several_keys, A eps,
                   bool use_std, const KeyStatistics<A>& out);

/// At least two of the N keys have positive weight.
template <typename A>
bool several_keys(const A* weight, int64_t N);

}  // namespace kktorch::csrc
