#pragma once
// Patterns for the attn_mask of the attention ops: bool [M, N], True = may attend.
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>

namespace kktorch {

/// Sliding window: query i sees the keys j with |i - j| <= width, and the first num_global tokens
/// see all and are seen by all.
///
/// @throws c10::ValueError  "local_window_mask: expected <what>, but got <values>".
at::Tensor local_window_mask(int64_t M, int64_t N, int64_t width, int64_t num_global = 0,
                             at::Device device = at::kCPU);

}  // namespace kktorch
