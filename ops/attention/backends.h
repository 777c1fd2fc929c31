#pragma once
// The back ends among which attention_backend chooses. KKTORCH_ATTENTION=stock|core forces one.
#include "ops/attention/problem.h"

namespace kktorch::detail {

/// ATen's softmax attention on normalised tensors: every problem.
const AttentionBackend& stock_backend();

/// Our own kernels (csrc/attention/core): the problems that core_takes.
const AttentionBackend& core_backend();

/// On the CPU, without dropout, heads at most csrc::kCoreMaxWidth wide.
bool core_takes(const AttentionProblem& problem);

/// What KKTORCH_ATTENTION says: nothing, "stock" or "core".
/// @throws c10::ValueError for anything else.
std::string_view forced_backend();

}  // namespace kktorch::detail
