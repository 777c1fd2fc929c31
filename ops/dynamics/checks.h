#pragma once
// Checks of inputs that the ops of training dynamics share.
#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <string_view>

namespace kktorch::detail {

/// `t` has these sizes, and dtype and device of `like`.
inline void check_like(std::string_view op, const char* name, const at::Tensor& t,
                       const at::Tensor& like, std::initializer_list<c10::SymInt> sizes) {
  TORCH_CHECK(t.scalar_type() == like.scalar_type() && t.device() == like.device() &&
                  t.sym_sizes() == c10::SymIntArrayRef(sizes),
              op, ": expected ", name, " ", like.scalar_type(), " ", c10::SymIntArrayRef(sizes),
              " on ", like.device(), ", but got ", t.scalar_type(), " ", t.sym_sizes(), " on ",
              t.device());
}

inline void check_single_or_double(std::string_view op, const char* name, const at::Tensor& t) {
  TORCH_CHECK(t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble, op, ": expected ",
              name, " float32 or float64, but got ", t.scalar_type());
}

/// Data is not differentiable.
inline void check_no_gradient(std::string_view op, std::initializer_list<at::Tensor> data) {
  for (const auto& t : data)
    TORCH_CHECK(!t.requires_grad(), op, ": expected data that does not require gradients, but got ",
                t.sym_sizes(), " that does");
}

}  // namespace kktorch::detail
