#pragma once
// Attention of heads to windows of tokens, each head with its own window length, on the attention
// core: all heads in one parallel region, the longest first. Keys and values are pooled head by
// head, on the way into the kernels; no tensor holds them. Not causal.
#include <vector>

#include "csrc/attention/token_pool.h"
#include "ops/attention/problem.h"

namespace kktorch::detail {

struct PooledHeads {
  AttentionProblem problem;  // keys and values as they are; no key weights, no mask, no dropout
  at::Tensor padding;  // bool [B, N] contiguous, true = ignored; undefined where there is none
  std::vector<int64_t> scales;  // [Hk]
  int64_t num_special;
  bool drop_tail, count_weighting;

  csrc::Windows windows(int64_t hk) const {
    return {problem.N(), scales[hk], num_special, drop_tail};
  }
};

AttentionResult pooled_heads_forward(const PooledHeads& heads);
AttentionGradients pooled_heads_backward(const PooledHeads& heads, const AttentionResult& result,
                                         const at::Tensor& grad_out);

}  // namespace kktorch::detail
