#pragma once
// Projection onto a product of balls, one for each leading index (arXiv 2601.16514, section 4):
//
//     p_i -> center_i + (p_i - center_i) min(1, radius / ||p_i - center_i||_2)
//
// Radius infinity changes nothing (not even a rounding), radius 0 gives the centers.
#include <ATen/core/Tensor.h>

#include <tuple>

namespace kktorch {

/// @param p, center  [m, ...], float32 or float64.
/// @return  projected [m, ...] and moved, bool [m]: p_i lay outside.
/// @throws c10::Error  "project_ball: expected <what>, but got <values>".
std::tuple<at::Tensor, at::Tensor> project_ball(const at::Tensor& p, const at::Tensor& center,
                                                double radius);

}  // namespace kktorch
