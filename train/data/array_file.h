#pragma once
// Arrays in files: .npz (numpy.savez, savez_compressed), .npy (numpy.save), .pt (torch.save in its
// zip format).
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

namespace kktorch {

/// All arrays of a .npz file, or of a .pt file that holds a dictionary of tensors: float16/32/64,
/// int8/16/32/64, uint8 and bool, little-endian, in C or Fortran order.
/// @throws UserError "<file>: expected <...>, but got <...>".
std::map<std::string, at::Tensor> read_arrays(const std::filesystem::path& file);

/// One array: of a .npy file, whose bytes are mapped, not copied; or of a .pt file that holds a
/// tensor, or a dictionary of tensors with the entry `key`.
/// @throws UserError as read_arrays.
at::Tensor read_array(const std::filesystem::path& file, const std::string& key);

}  // namespace kktorch
