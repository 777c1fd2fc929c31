#include "ops/attention_masks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>

namespace kktorch {

at::Tensor local_window_mask(int64_t M, int64_t N, int64_t width, int64_t num_global,
                             at::Device device) {
  TORCH_CHECK_VALUE(M >= 0 && N >= 0 && width >= 0 && num_global >= 0,
                    "local_window_mask: expected M, N, width, num_global >= 0, but got ", M, ", ",
                    N, ", ", width, ", ", num_global);
  const auto i = at::arange(M, device).unsqueeze(1), j = at::arange(N, device);
  return ((i - j).abs() <= width).logical_or(i < num_global).logical_or(j < num_global);
}

}  // namespace kktorch
