#pragma once
// The .npy format of NumPy, versions 1.0 to 3.0: a header that describes an array, then its
// numbers. Format: numpy.lib.format in NumPy's reference.
#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <vector>

namespace kktorch {

struct NpyHeader {
  size_t begin = 0;  ///< of the numbers, in bytes from the start
  at::ScalarType dtype = at::kFloat;
  bool fortran = false;
  std::vector<int64_t> shape;

  size_t bytes() const;  ///< of the whole array, header included
};

/// @param start  the bytes of an array, at least up to the end of its header.
/// @param place  names the array in errors.
/// @throws UserError "<place>: expected <...>, but got <...>".
NpyHeader read_npy_header(std::string_view start, const std::string& place);

/// A view of `numbers` [header.bytes() - header.begin] uint8 as the array.
at::Tensor npy_view(const NpyHeader& header, const at::Tensor& numbers);

}  // namespace kktorch
