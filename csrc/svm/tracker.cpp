#include "csrc/svm/tracker.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "csrc/common/tier_dispatch.h"

namespace kktorch::csrc {

KKTORCH_DEFINE_TIERED(TrackerKernels, tracker_kernels)

template const TrackerKernels<double>& tracker_kernels<double>();
template const TrackerKernels<float>& tracker_kernels<float>();
template const TrackerKernels<c10::BFloat16>& tracker_kernels<c10::BFloat16>();
template const TrackerKernels<c10::Half>& tracker_kernels<c10::Half>();

}  // namespace kktorch::csrc
