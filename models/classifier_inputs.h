#pragma once
// What classifiers repeat about their inputs: masks, and statistics that a saved model carries.
#include <torch/torch.h>

#include <string_view>

namespace kktorch::detail {

/// Throws unless `padding_mask` is undefined or bool of the first two sizes of `tokens`.
void check_padding_mask(std::string_view module, const torch::Tensor& padding_mask,
                        const torch::Tensor& tokens);

/// Copies mean and std [C] into the buffers input_mean and input_std of `module`; a standard
/// deviation of 0 becomes 1. @throws c10::Error  "<module>: expected …, but got …".
void set_standardisation(std::string_view module, const torch::Tensor& mean,
                         const torch::Tensor& std, torch::Tensor& input_mean,
                         torch::Tensor& input_std);

}  // namespace kktorch::detail
