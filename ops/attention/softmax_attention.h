#pragma once
// Softmax attention by ATen, or by the core where it takes the problem, forward and backward, below
// autograd:
//
//     S = scale q k^T + bias,   P = softmax(S),   out = (P o Z) v,     Z = 1, or dropout
//
// The only file that names ATen's private attention ops; their schemas are checked when the library
// loads.
#include <ATen/core/Tensor.h>

#include <tuple>

namespace kktorch::detail {

struct SoftmaxAttention {
  at::Tensor query, key,
      value;        // [B, H, M, D], [B, Hk, N, D], [B, Hk, N, Dv]; one dtype; not empty
  at::Tensor bias;  // added to the logits, broadcastable to [B, H, M, N], acc; or undefined
  bool is_causal;   // row i sees keys j <= i; on CUDA only with M = N
  double scale, dropout_p;
};

struct SoftmaxResult {
  at::Tensor out, logsumexp;  // [B, H, M, Dv], [B, H, M]; rows that see no key give out = 0
  at::Tensor rng_state;       // empty without dropout
};

SoftmaxResult softmax_attention_forward(const SoftmaxAttention& problem);

/// Gradients of query, key, value; `grad_out` [B, H, M, Dv].
std::tuple<at::Tensor, at::Tensor, at::Tensor> softmax_attention_backward(
    const SoftmaxAttention& problem, const SoftmaxResult& result, const at::Tensor& grad_out);

/// The materialising path, for any device and dtype (no dropout).
SoftmaxResult math_attention_forward(const SoftmaxAttention& problem);
std::tuple<at::Tensor, at::Tensor, at::Tensor> math_attention_backward(
    const SoftmaxAttention& problem, const SoftmaxResult& result, const at::Tensor& grad_out);

}  // namespace kktorch::detail
