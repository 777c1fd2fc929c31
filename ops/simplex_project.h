#pragma once
// Projection of every slice along a dimension onto the simplex of a radius.
//
//     w = argmin |w - v|^2, w >= 0, sum w = radius
//
// The gradient is that of the active set S = {w > 0}: dv = 1_S (g - mean_S g); entries exactly at
// the threshold count as inactive. An entry -inf is masked: its w is 0. A slice with NaN, with
// +inf, or of -inf alone becomes NaN.
#include <ATen/core/Tensor.h>

namespace kktorch {

/// @param v       any shape, float16, bfloat16, float32 or float64.
/// @param radius  finite, > 0; not differentiable.
/// @param dim     the dimension of the slices; not empty.
/// @return        w, shape and dtype of v; computed in float32 for halves, sums in float64.
/// @throws c10::Error  "simplex_project: expected <what>, but got <values>".
at::Tensor simplex_project(const at::Tensor& v, double radius = 1.0, int64_t dim = -1);

}  // namespace kktorch
