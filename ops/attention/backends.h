#pragma once
// The back ends among which attention_backend chooses. KKTORCH_ATTENTION=stock|core forces one.
#include "ops/attention/problem.h"
#include "ops/attention/softmax_attention.h"

namespace kktorch::detail {

/// ATen's softmax attention on normalised tensors: every problem.
const AttentionBackend& stock_backend();

/// Our own kernels (csrc/attention/core): the problems that core_takes.
const AttentionBackend& core_backend();

/// Softmax attention alone, on the core, where core_is_chosen for it.
SoftmaxResult core_attention_forward(const SoftmaxAttention& attention);
std::tuple<at::Tensor, at::Tensor, at::Tensor> core_attention_backward(
    const SoftmaxAttention& attention, const SoftmaxResult& result, const at::Tensor& grad_out);
bool core_is_chosen(const SoftmaxAttention& attention);

/// On the CPU, without dropout, heads at most csrc::kCoreMaxWidth wide.
bool core_takes(const AttentionProblem& problem);

/// What KKTORCH_ATTENTION says: nothing, "stock" or "core".
/// @throws c10::ValueError for anything else.
std::string_view forced_backend();

}  // namespace kktorch::detail
