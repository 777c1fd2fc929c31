// Built once per instruction-set tier (KKTORCH_TIER): plain loops over channels for the vectoriser.
#include <algorithm>

#include "csrc/attention/token_pool.h"
#include "csrc/common/row_convert.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

template <typename T, typename A = acc_t<T>>
void forward(Rows<const T> input, const bool* padding, const float* count, const Windows& windows,
             int64_t first, int64_t last, int64_t C, Rows<T> pooled, A* scratch) {
  for (int64_t w = first; w < last; ++w) {
    A* __restrict mean = row_buffer(pooled[w], scratch + C);
    std::fill_n(mean, C, A{0});
    for (int64_t j = windows.begin(w); j < windows.end(w); ++j) {
      if (padding && padding[j]) continue;
      const A* __restrict x = load_row(input[j], C, scratch);
      for (int64_t c = 0; c < C; ++c) mean[c] += x[c];
    }
    if (count[w] > 1)
      for (int64_t c = 0; c < C; ++c) mean[c] /= static_cast<A>(count[w]);
    store_row(mean, C, pooled[w]);
  }
}

template <typename T, typename A = acc_t<T>>
void backward(Rows<const T> grad_pooled, const bool* padding, const float* count,
              const Windows& windows, int64_t first, int64_t last, int64_t C, Rows<T> grad_input,
              A* scratch) {
  for (int64_t w = first; w < last; ++w) {
    A* __restrict share = scratch + C;
    if (count[w] > 0) {
      const A* __restrict grad = load_row(grad_pooled[w], C, scratch);
      for (int64_t c = 0; c < C; ++c) share[c] = grad[c] / static_cast<A>(count[w]);
    }
    for (int64_t j = windows.begin(w); j < windows.end(w); ++j) {
      if (padding && padding[j])
        std::fill_n(grad_input[j], C, T(0));
      else if constexpr (std::is_same_v<T, A>)
        std::copy_n(share, C, grad_input[j]);
      else
        store_row(share, C, grad_input[j]);
    }
  }
}

}  // namespace

template <typename T>
PoolKernels<T> pool_kernels() {
  return {forward<T>, backward<T>};
}
template PoolKernels<double> pool_kernels();
template PoolKernels<float> pool_kernels();
template PoolKernels<c10::BFloat16> pool_kernels();
template PoolKernels<c10::Half> pool_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
