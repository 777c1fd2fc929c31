// Built once per instruction-set tier (KKTORCH_TIER): plain loops over channels for the vectoriser.
#include <algorithm>

#include "csrc/attention/bn_formulas.h"
#include "csrc/attention/bn_global.h"
#include "csrc/common/prefetch.h"
#include "csrc/common/row_convert.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

template <typename A>
A weight_of(const A* weight, int64_t j) {
  return weight ? weight[j] : A{1};
}

/// Keys whose sum is formed before the sum over the block takes it: rounding errors of long sums
/// would grow with the root of their length, and those of the mean reach the gradient of beta
/// whole.
constexpr int64_t kChain = 32;

/// sums[d] += sum over the valid keys of the block of term(w, d, k_d). scratch: [2 D].
template <typename T, typename A = acc_t<T>, typename Term>
void add_over_keys(const Keys<T>& keys, Block block, A* __restrict sums, A* scratch,
                   const Term& term) {
  const int64_t D = keys.D;
  A* __restrict part = scratch + D;
  for (int64_t begin = block.begin; begin < block.end; begin += kChain) {
    std::fill_n(part, D, A{0});
    for (int64_t j = begin; j < std::min(begin + kChain, block.end); ++j) {
      prefetch_behind(keys.rows, j, D);
      const A w = weight_of(keys.weight, j);
      if (!(w > 0)) continue;
      const A* __restrict k = load_row(keys.rows[j], D, scratch);
      for (int64_t d = 0; d < D; ++d) part[d] += term(w, d, k[d]);
    }
    for (int64_t d = 0; d < D; ++d) sums[d] += part[d];
  }
}

template <typename T, typename A = acc_t<T>>
void moments(const Keys<T>& keys, Block block, const A* __restrict shift, A* block_moments,
             A* scratch) {
  const int64_t D = keys.D;
  A* __restrict mean = block_moments + 1, * __restrict m2 = block_moments + 1 + D;
  std::fill_n(mean, D, A{0});
  std::fill_n(m2, D, A{0});
  A n = 0;
  for (int64_t j = block.begin; j < block.end; ++j)
    if (const A w = weight_of(keys.weight, j); w > 0) n += w;
  block_moments[0] = n;
  if (!(n > 0)) return;
  add_over_keys(keys, block, mean, scratch,
                [=](A w, int64_t d, A k) { return w * (k - shift[d]); });
  for (int64_t d = 0; d < D; ++d) mean[d] /= n;
  add_over_keys(keys, block, m2, scratch, [=](A w, int64_t d, A k) {
    const A c = (k - shift[d]) - mean[d];
    return w * c * c;
  });
}

template <typename T, typename A = acc_t<T>>
void normalise_keys(const Keys<T>& keys, Block block, const KeyStatistics<A>& statistics,
                    Rows<T> c_hat, A* scratch) {
  const A *__restrict shift = statistics.shift, *__restrict mean = statistics.mean,
          *__restrict rstd = statistics.rstd;
  const int64_t D = keys.D;
  for (int64_t j = block.begin; j < block.end; ++j) {
    A* __restrict c = row_buffer(c_hat[j], scratch + D);
    if (weight_of(keys.weight, j) > 0) {
      const A* __restrict k = load_row(keys.rows[j], D, scratch);
      for (int64_t d = 0; d < D; ++d) c[d] = ((k[d] - shift[d]) - mean[d]) * rstd[d];
    } else {
      std::fill_n(c, D, A{0});
    }
    store_row(c, D, c_hat[j]);
  }
}

template <typename T, typename A = acc_t<T>>
void normalise_queries(Rows<const T> query, Block block, int64_t D, A beta,
                       const KeyStatistics<A>& statistics, Rows<T> q_hat, A* scratch) {
  const A *__restrict shift = statistics.shift, *__restrict mean = statistics.mean,
          *__restrict rstd = statistics.rstd;
  for (int64_t i = block.begin; i < block.end; ++i) {
    const A* __restrict q = load_row(query[i], D, scratch);
    A* __restrict out = row_buffer(q_hat[i], scratch + D);
    for (int64_t d = 0; d < D; ++d) out[d] = shift_query(q[d], beta, shift[d], mean[d]) * rstd[d];
    store_row(out, D, q_hat[i]);
  }
}

template <typename T, typename A = acc_t<T>>
void query_gradient(Rows<const T> q_hat, Block block, int64_t D, const A* __restrict rstd,
                    Rows<T> grad, QuerySums<A> sums, A* scratch) {
  A* __restrict shift_sum = sums.shift, * __restrict scale_sum = sums.scale;
  std::fill_n(shift_sum, D, A{0});
  std::fill_n(scale_sum, D, A{0});
  for (int64_t i = block.begin; i < block.end; ++i) {
    const A* __restrict q = load_row(q_hat[i], D, scratch);
    const A* loaded = load_row<T>(grad[i], D, scratch + D);
    A* g = row_buffer(grad[i], scratch + D);  // the same values: in place, or in scratch
    for (int64_t d = 0; d < D; ++d) {
      const A g_d = loaded[d];
      shift_sum[d] += g_d;
      scale_sum[d] += g_d * q[d];
      g[d] = rstd[d] * g_d;
    }
    store_row(g, D, grad[i]);
  }
}

template <typename T, typename A = acc_t<T>>
void key_gradient(Rows<const T> c_hat, const A* weight, A total_weight, Block block, int64_t D,
                  const A* __restrict rstd, QuerySums<A> sums, Rows<T> grad, A* scratch) {
  const A* __restrict shift_sum = sums.shift, * __restrict scale_sum = sums.scale;
  for (int64_t j = block.begin; j < block.end; ++j) {
    const A w = weight_of(weight, j);
    if (!(w > 0)) {
      std::fill_n(grad[j], D, T(0));
      continue;
    }
    const A* __restrict c = load_row(c_hat[j], D, scratch);
    const A* gamma = load_row<T>(grad[j], D, scratch + D);
    A* g = row_buffer(grad[j], scratch + D);
    const A share = w / total_weight;
    for (int64_t d = 0; d < D; ++d)
      g[d] = csrc::key_gradient(gamma[d], rstd[d], share, shift_sum[d], scale_sum[d], c[d]);
    store_row(g, D, grad[j]);
  }
}

}  // namespace

template <typename T>
GlobalKernels<T> global_kernels() {
  return {moments<T>, normalise_keys<T>, normalise_queries<T>, query_gradient<T>, key_gradient<T>};
}
template GlobalKernels<double> global_kernels();
template GlobalKernels<float> global_kernels();
template GlobalKernels<c10::BFloat16> global_kernels();
template GlobalKernels<c10::Half> global_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
