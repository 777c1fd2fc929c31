#include "csrc/convex/rows.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "csrc/common/tier_dispatch.h"

namespace kktorch::csrc {

KKTORCH_DEFINE_TIERED(RowKernels, row_kernels)

template const RowKernels<double>& row_kernels<double>();
template const RowKernels<float>& row_kernels<float>();
template const RowKernels<c10::BFloat16>& row_kernels<c10::BFloat16>();
template const RowKernels<c10::Half>& row_kernels<c10::Half>();

}  // namespace kktorch::csrc
