#include "csrc/attention/token_pool.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "csrc/common/tier_dispatch.h"

namespace kktorch::csrc {

KKTORCH_DEFINE_TIERED(PoolKernels, pool_kernels)

template const PoolKernels<double>& pool_kernels<double>();
template const PoolKernels<float>& pool_kernels<float>();
template const PoolKernels<c10::BFloat16>& pool_kernels<c10::BFloat16>();
template const PoolKernels<c10::Half>& pool_kernels<c10::Half>();

}  // namespace kktorch::csrc
