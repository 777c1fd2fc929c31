#include "csrc/attention/bn_global.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>

#include "csrc/attention/bn_formulas.h"
#include "csrc/common/tier_dispatch.h"

namespace kktorch::csrc {

KKTORCH_DEFINE_TIERED(GlobalKernels, global_kernels)

template <typename T>
void first_valid_key(const Keys<T>& keys, int64_t N, acc_t<T>* shift) {
  int64_t first = 0;
  while (keys.weight && first < N && !(keys.weight[first] > 0)) ++first;
  for (int64_t d = 0; d < keys.D; ++d)
    shift[d] = first < N ? static_cast<acc_t<T>>(keys.rows[first][d]) : 0;
}

template <typename A>
bool several_keys(const A* weight, int64_t N) {
  if (!weight) return N > 1;
  int64_t valid = 0;
  for (int64_t j = 0; j < N && valid < 2; ++j) valid += weight[j] > 0;
  return valid > 1;
}

template <typename A>
void merge_moments(const A* block_moments, int64_t blocks, int64_t D, bool several_keys, A eps,
                   bool use_std, const KeyStatistics<A>& out) {
  for (int64_t d = 0; d < D; ++d) {
    Moments<A> all{0, 0, 0};
    for (int64_t b = 0; b < blocks; ++b) {
      const A* block = block_moments + b * block_moments_size(D);
      all = merge(all, Moments<A>{block[0], block[1 + d], block[1 + D + d]});
    }
    out.mean[d] = all.mean;
    out.rstd[d] = several_keys ? std::sqrt(inverse_variance(all.m2 / all.n, eps, use_std)) : 0;
  }
}

#define INSTANTIATE(T)                                  \
  template const GlobalKernels<T>& global_kernels<T>(); \
  template void first_valid_key<T>(const Keys<T>&, int64_t, acc_t<T>*);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)
#undef INSTANTIATE
#define INSTANTIATE(A)                           \
  template bool several_keys(const A*, int64_t); \
  template void merge_moments(const A*, int64_t, int64_t, bool, A, bool, const KeyStatistics<A>&);
INSTANTIATE(double)
INSTANTIATE(float)
#undef INSTANTIATE

}  // namespace kktorch::csrc
