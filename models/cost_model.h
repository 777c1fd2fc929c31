#pragma once
// Floating-point operations of one encoder block, as a model of the gain of scaled heads.
#include <cstdint>
#include <vector>

namespace kktorch {

/// Mean over the heads of 1 / scale: the part of the keys, and of the probabilities, that is left
/// when head h averages windows of scales[h] keys.
double pooled_fraction(const std::vector<int64_t>& scales);

/// An encoder block on `tokens` tokens of `width` features, with a feed-forward network of hidden
/// width `ffn`.
struct BlockShape {
  int64_t tokens = 0, width = 0, ffn = 0;
};

/// FLOPs of one block, two per multiply-add, with N tokens, width d, hidden width f and the
/// fraction r of pooled_fraction() (1: no pooling):
///
///     queries and output 4 N d^2   keys and values 4 N d^2 r   attention 4 N^2 d r   network 4 N d
///     f
///
/// Projected before they are pooled (pool_first = false), keys and values cost 4 N d^2. The
/// normalisation of Attention-BN, about 6 N d, is left out.
double block_flops(const BlockShape& shape, double pooled_fraction = 1.0, bool pool_first = true);

/// The same with linear attention in `heads` heads, pooled first. Its sums over keys and its
/// products with queries take the place of the attention's 4 N^2 d r:
///
///     2 N d (d / heads) (1 + r)
double linear_block_flops(const BlockShape& shape, int64_t heads, double pooled_fraction = 1.0);

}  // namespace kktorch
