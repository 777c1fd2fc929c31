#pragma once
// Causal attention to pooled windows of the past and to the tokens of the own window
// (ops/attention_sh.h), O(N) memory: softmax attention in parts that share one normaliser,
//
//     lse = log sum_parts exp lse_part,      o = sum_parts exp(lse_part - lse) o_part
//
// and in backward every part is an ordinary attention backward with the total o and lse.
#include "ops/attention/problem.h"

namespace kktorch::detail {

/// The windows of the keys: see csrc/attention/token_pool.h.
struct WindowPattern {
  int64_t window, num_special;
  bool count_weighting;  // a window weighs as much as it has valid tokens
};

/// `problem` is causal with M = N, its keys and values tokens; prefix statistics are those of the
/// tokens. AttentionResult::logsumexp is -inf where a row sees nothing.
AttentionResult causal_windows_forward(const AttentionProblem& problem,
                                       const WindowPattern& pattern);

AttentionGradients causal_windows_backward(const AttentionProblem& problem,
                                           const WindowPattern& pattern,
                                           const AttentionResult& result,
                                           const at::Tensor& grad_out);

}  // namespace kktorch::detail
