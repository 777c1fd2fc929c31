#pragma once
// The checks that every function around the convex programs shares: "<function>: expected <what>,
// but got <values>".
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string_view>

#include "csrc/convex/solver.h"

namespace kktorch::detail {

/// X [N, n, d] float32 or float64, or token ids [N, n] int64 with `num_values`; finite.
void check_features(std::string_view function, const at::Tensor& X, int64_t num_values);

/// @throws c10::ValueError naming the four losses.
csrc::Loss loss_of(std::string_view function, std::string_view loss);

/// Targets [N, c] (of sequences [N, n, c]) or class ids [N] ([N, n]) that suit the loss.
void check_targets(std::string_view function, const at::Tensor& X, const at::Tensor& Y,
                   csrc::Loss loss, bool sequence);

/// gate [N, P] of zeros and ones, at least one open.
void check_gate(std::string_view function, const at::Tensor& X,
                const std::optional<at::Tensor>& gate);

/// gate_id int64 [h] with values in [0, P).
void check_gate_id(std::string_view function, const at::Tensor& gate_id, int64_t h, int64_t P);

void check_beta(std::string_view function, double beta);

/// The first entry that is not finite is named.
void check_finite(std::string_view function, const char* name, const at::Tensor& t);

/// Checked targets as the loss reads them: values of type T, or class ids.
template <typename T>
csrc::Targets<T> targets_of(const at::Tensor& Y) {
  if (Y.is_floating_point()) return {Y.const_data_ptr<T>(), nullptr};
  return {nullptr, Y.const_data_ptr<int64_t>()};
}

/// task(0) ... task(units - 1), spread over the threads of LibTorch.
void run_parallel(int64_t units, const std::function<void(int64_t)>& task);

/// Number of outputs of the targets: classes for ids.
int64_t outputs_of(const at::Tensor& Y, int64_t classes);

}  // namespace kktorch::detail
