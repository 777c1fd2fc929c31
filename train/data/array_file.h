#pragma once
// Named arrays in a file: .npz (numpy.savez, savez_compressed) or .pt (torch.save of a dictionary
// of tensors).
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

namespace kktorch {

/// float16/32/64, int8/16/32/64, uint8 and bool arrays, in C order.
/// @throws UserError "<file>: expected <...>, but got <...>".
std::map<std::string, at::Tensor> read_arrays(const std::filesystem::path& file);

}  // namespace kktorch
