#pragma once
// Incremental decoding with heads that pool. A new token at position p sees, as in the causal
// Attention-SH (ops/attention_sh.h),
//
//     the special tokens up to p, the windows that end before its own begins, and, one by one, the
//     tokens of its own window up to p.
//
// With Attention-BN its query is normalised by the statistics of the raw keys up to p, which leaves
// softmax attention to that list of tokens and windows.
#include <vector>

#include "models/attention_bnsh.h"

namespace kktorch::detail {

/// The next T tokens of samples that are all at one position.
/// @param heads  query, key and value heads [B, heads, T, width].
/// @param cache  advances, except for lengths().
/// @return       [B, H, T, Dv]
torch::Tensor decode_pooled(const AttentionBNSHImpl& layer, const std::vector<torch::Tensor>& heads,
                            KVCache& cache);

}  // namespace kktorch::detail
