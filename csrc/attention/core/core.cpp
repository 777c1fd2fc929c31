#include "csrc/attention/core/core.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "csrc/common/tier_dispatch.h"

namespace kktorch::csrc {

KKTORCH_DEFINE_TIERED_WITH_AMX(CoreKernels, core_kernels)

template const CoreKernels<double>& core_kernels();
template const CoreKernels<float>& core_kernels();
template const CoreKernels<c10::BFloat16>& core_kernels();
template const CoreKernels<c10::Half>& core_kernels();

}  // namespace kktorch::csrc
