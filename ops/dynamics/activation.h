#pragma once
// Activations of heads by name: "tanh", "sigmoid", "identity".
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/ones_like.h>

#include <string_view>

#include "csrc/dynamics/heads.h"

namespace kktorch::detail {

inline csrc::Activation activation_of(std::string_view op, std::string_view act) {
  TORCH_CHECK_VALUE(act == "tanh" || act == "sigmoid" || act == "identity", op,
                    ": expected act 'tanh', 'sigmoid' or 'identity', but got '", act, "'");
  return act == "tanh"      ? csrc::Activation::kTanh
         : act == "sigmoid" ? csrc::Activation::kSigmoid
                            : csrc::Activation::kIdentity;
}

inline at::Tensor activate(const at::Tensor& s, std::string_view act) {
  return act == "tanh" ? s.tanh() : act == "sigmoid" ? s.sigmoid() : s;
}

/// sigma'(s) from h = sigma(s).
inline at::Tensor slope(const at::Tensor& h, std::string_view act) {
  return act == "tanh" ? 1 - h * h : act == "sigmoid" ? h * (1 - h) : at::ones_like(h);
}

}  // namespace kktorch::detail
