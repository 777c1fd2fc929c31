#include "csrc/attention/bn_prefix.h"

#include "csrc/common/tier_dispatch.h"

namespace kktorch::csrc {

KKTORCH_DEFINE_TIERED(PrefixKernels, prefix_kernels)

template const PrefixKernels<double>& prefix_kernels<double>();
template const PrefixKernels<float>& prefix_kernels<float>();

}  // namespace kktorch::csrc
