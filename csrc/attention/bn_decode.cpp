#include "csrc/attention/bn_decode.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>

#include "csrc/common/tier_dispatch.h"

namespace kktorch::csrc {

KKTORCH_DEFINE_TIERED(DecodeKernels, decode_kernels)

template const DecodeKernels<double>& decode_kernels<double>();
template const DecodeKernels<float>& decode_kernels<float>();
template const DecodeKernels<c10::BFloat16>& decode_kernels<c10::BFloat16>();
template const DecodeKernels<c10::Half>& decode_kernels<c10::Half>();

template <typename A>
void merge_decoded(const A* max, const A* sum, const A* out, int64_t parts, int64_t stride,
                   int64_t out_stride, int64_t Dv, A* result) {
  A top = max[0], total = 0;
  for (int64_t part = 1; part < parts; ++part) top = std::max(top, max[part * stride]);
  std::fill_n(result, Dv, A{0});
  for (int64_t part = 0; part < parts; ++part) {
    if (sum[part * stride] == 0) continue;
    const A factor = std::exp(max[part * stride] - top);
    total += factor * sum[part * stride];
    for (int64_t e = 0; e < Dv; ++e) result[e] += factor * out[part * out_stride + e];
  }
  for (int64_t e = 0; e < Dv; ++e) result[e] /= total;
}

template void merge_decoded(const double*, const double*, const double*, int64_t, int64_t, int64_t,
                            int64_t, double*);
template void merge_decoded(const float*, const float*, const float*, int64_t, int64_t, int64_t,
                            int64_t, float*);

}  // namespace kktorch::csrc
