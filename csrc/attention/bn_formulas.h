#pragma once
// Attention-BN, one channel of one key or query: the formulas that the CPU and the CUDA kernels
// share. Letters: x0 shift (first valid key), m mean of k - x0, mu = x0 + m, r = 1/sqrt(variance +
// eps), n key weight.
#include <cmath>

#include "csrc/common/macros.h"

namespace kktorch::csrc {

/// Weighted moments of shifted keys: weight n, mean, and m2 = sum_j n_j (x_j - mean)^2.
template <typename A>
struct Moments {
  A n, mean, m2;
};

/// Moments of the union of two sets of keys (Chan, Golub & LeVeque 1979).
template <typename A>
KKTORCH_HD Moments<A> merge(const Moments<A>& a, const Moments<A>& b) {
  const A n = a.n + b.n;
  if (!(n > 0)) return {0, 0, 0};
  const A delta = b.mean - a.mean;
  return {n, a.mean + delta * (b.n / n), a.m2 + b.m2 + delta * delta * (a.n * b.n / n)};
}

/// a = r^2 = 1 / (variance + eps). With eps = 0 a constant channel is dead: a = 0.
template <typename A>
KKTORCH_HD A inverse_variance(A variance, A eps, bool use_std) {
  if (!use_std) return 1;
  const A floor = variance + eps;
  return floor > 0 ? 1 / floor : 0;
}

/// (q - beta mu) in two steps: exact digits survive when q and the keys share a large offset.
template <typename A>
KKTORCH_HD A shift_query(A q, A beta, A x0, A m) {
  const A t = q - beta * x0;
  return t - beta * m;
}

/// dk = r (gamma - (n_j / n) (shift_sum + 2 c^ scale_sum)), with shift_sum = sum_h beta_h A^h and
/// scale_sum = sum_h T^h (0 without use_std), c^ = (k - mu) r.
template <typename A>
KKTORCH_HD A key_gradient(A gamma, A r, A share, A shift_sum, A scale_sum, A c_hat) {
  return r * (gamma - share * (shift_sum + (c_hat + c_hat) * scale_sum));
}

}  // namespace kktorch::csrc
