#pragma once
// Shrinkage of groups, the proximal operator of tau times the sum of their Euclidean norms.
//
//     z = 0 if |u| <= tau, else (1 - tau / |u|) u        for every group u
//
// Where |u| > tau, with e = u / |u|: du = (1 - tau/|u|) g + (tau/|u|) e (e'g), dtau = -e'g; the
// gradient is 0 elsewhere, at the kink too.
#include <ATen/core/Tensor.h>

namespace kktorch {

/// @param u           float16, bfloat16, float32 or float64; norms are float64.
/// @param tau         >= 0 (checked on the CPU): a scalar, or one for each group, in the shape of
/// the leading dimensions of u.
/// @param group_ndim  the last group_ndim dimensions of u are a group.
/// @throws c10::Error "group_soft_threshold: expected <what>, but got <values>".
at::Tensor group_soft_threshold(const at::Tensor& u, const at::Tensor& tau, int64_t group_ndim = 1);

}  // namespace kktorch
