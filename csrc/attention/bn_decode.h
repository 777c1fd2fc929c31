#pragma once
// Attention-BN on a cache of raw keys, one chunk of new tokens at a time (formula:
// ops/attention_bn_decode.h), on the CPU. Torch-free. The cache is read once: in blocks of keys
// that stay in the L1 cache while every query row uses them, with an online softmax per row,
//
//     m' = max(m, max_j s_j),   l' = l e^(m - m') + sum_j e^(s_j - m'),   o' = o e^(m - m') + ...
#include <cstdint>

#include "csrc/common/types.h"

namespace kktorch::csrc {

/// One key head and the G query heads that share it. T new tokens, D and Dv widths.
template <typename T>
struct DecodeHead {
  Rows<const T> key, value;       // the cache with the new tokens in it
  int64_t G, T_new, D, Dv, past;  // past: tokens before the new ones
};

/// Statistics of the keys of one head, [D] each.
template <typename A>
struct RunningMoments {
  A *mean, *m2;
};

/// Rows of queries, [G T_new, D] by query head, then token, in accumulation type; and what the
/// online softmax knows of each: maximum, sum, output [Dv].
template <typename A>
struct DecodeRows {
  A *query, *max, *sum, *out;
};

template <typename T>
struct DecodeKernels {
  using A = acc_t<T>;

  /// Takes the new keys into the moments, one by one, and normalises the queries of each token by
  /// the keys up to it: rows.query = scale q~. query: G views of [T_new, D]; beta: [G].
  void (*advance)(const DecodeHead<T>& head, const Rows<const T>* query, const A* beta, A eps,
                  bool use_std, A scale, RunningMoments<A> moments, const DecodeRows<A>& rows,
                  A* scratch /* [3 D] */);

  /// Attends to the keys [begin, end), from nothing: max = -inf, sum = 0, out = 0 where a row sees
  /// none of them. scratch: decode_scratch_size().
  void (*attend)(const DecodeHead<T>& head, int64_t begin, int64_t end, const DecodeRows<A>& rows,
                 A* scratch);
};

/// Keys that are taken at a time.
constexpr int64_t kDecodeBlock = 64;

inline int64_t decode_scratch_size(int64_t D) { return kDecodeBlock + D; }

/// The table of the CPU tier in use; T is double, float, c10::BFloat16 or c10::Half.
template <typename T>
const DecodeKernels<T>& decode_kernels();

/// Merges what `parts` sets of keys gave for one row: max [parts], sum [parts], out [parts, Dv]
/// with the given stride between parts; result [Dv], divided by the total sum.
template <typename A>
void merge_decoded(const A* max, const A* sum, const A* out, int64_t parts, int64_t stride,
                   int64_t out_stride, int64_t Dv, A* result);

}  // namespace kktorch::csrc
