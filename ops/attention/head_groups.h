#pragma once
// Heads of different scales, sorted into groups of one scale and back.
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string_view>

#include "ops/attention/problem.h"

namespace kktorch::detail {

/// The tensors of an attention that have heads; of a group, those of its heads alone.
struct HeadTensors {
  at::Tensor query, key, value;               // [B, H, M, D], [B, Hk, N, D], [B, Hk, N, Dv]
  std::optional<at::Tensor> beta, attn_mask;  // [], [1] or [H]; [M, N] or [B|1, H|1, M, N]
};

struct HeadGroup : HeadTensors {
  int64_t scale;
};

/// "<op>: expected …" for scales (1 or Hk numbers >= 1), tail, num_special, and what they leave of
/// the keys; a floating attn_mask only with scales of 1.
void check_scales(std::string_view op, const AttentionArguments& arguments, at::IntArrayRef scales,
                  std::string_view tail, const c10::SymInt& num_special);

/// attend(group) -> [B, heads of the group, M, Dv] for every distinct scale, in ascending order of
/// the first head; the results in the order of the heads, stored (B, M, H, Dv).
at::Tensor for_each_scale(at::IntArrayRef scales, const HeadTensors& heads,
                          const std::function<at::Tensor(const HeadGroup&)>& attend);

}  // namespace kktorch::detail
