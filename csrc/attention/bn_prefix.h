#pragma once
// Attention-BN with prefix statistics (causal) on the CPU: row i is normalised by the keys j <= p_i
// = query_offset + i,
//
//     q~_i = (q_i - beta mu_i) a_i,    x_j = k_j - x0,    logits = scale q~ x^T,    a_i = 1 /
//     (variance_i + eps)
//
// one sequential scan over the keys, O((M + N) D) memory. Torch-free; one call works on one key
// head and the G query heads that share it. x0 is the first valid key: it depends on the past
// alone, so no row feels a later key. a_i differs by row, which excludes the balanced form; storage
// is the accumulation type A (float or double).
#include <cstdint>

#include "csrc/common/types.h"

namespace kktorch::csrc {

template <typename A>
struct PrefixHead {
  Rows<const A> key;     // [N, D]
  const A* weight;       // [N], or null where every key weighs 1
  const A* shift;        // [D], x0
  const A* beta;         // [G]
  Rows<const A>* query;  // G views of [M, D]
  int64_t G, M, N, D, query_offset;
  A eps;
  bool use_std;
};

template <typename A>
struct PrefixKernels {
  /// x_j for all keys; a key of weight 0 gives 0 whatever it holds.
  void (*shift_keys)(const PrefixHead<A>& head, Rows<A> x);

  /// q~ of every query; q_tilde: G views. scratch: [3 D].
  void (*prepare_queries)(const PrefixHead<A>& head, const Rows<A>* q_tilde, A* scratch);

  /// Turns dq~ (G views) into dq in place and the gradient of x into dk in place; grad_beta [G]. x
  /// and q~ as prepared. scratch: [(3 M + 4) D].
  void (*gradient)(const PrefixHead<A>& head, Rows<const A> x, const Rows<const A>* q_tilde,
                   const Rows<A>* grad_query, Rows<A> grad_key, A* grad_beta, A* scratch);
};

/// The table of the CPU tier in use.
template <typename A>
const PrefixKernels<A>& prefix_kernels();

}  // namespace kktorch::csrc
