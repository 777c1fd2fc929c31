#include "csrc/dynamics/heads.h"

#include "csrc/common/tier_dispatch.h"

namespace kktorch::csrc {

KKTORCH_DEFINE_TIERED(HeadKernels, head_kernels)

template const HeadKernels<double>& head_kernels<double>();
template const HeadKernels<float>& head_kernels<float>();

}  // namespace kktorch::csrc
