#pragma once
// Loops over float64 numbers, in vectors of the instruction-set tier that is being built. Internal
// linkage, because every tier needs its own copy; included by tiered sources only.
#include "csrc/attention/core/vector.h"

namespace kktorch::csrc {
namespace {

using Doubles = Vector<double>;
constexpr int64_t kDoubles = kLanes<double>;

inline __attribute__((always_inline)) Doubles load(const double* p) { return load<Doubles>(p); }

/// sum_i over [0, n): `vector(i)` gives kDoubles terms from i on, `scalar(i)` one.
template <typename V, typename S>
inline __attribute__((always_inline)) double sum_of(int64_t n, const V& vector, const S& scalar) {
  constexpr int64_t kSums = 4;  // at a time, against the latency of an addition
  Doubles sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kDoubles <= n; i += kSums * kDoubles)
    for (int64_t v = 0; v < kSums; ++v) sums[v] += vector(i + v * kDoubles);
  for (; i + kDoubles <= n; i += kDoubles) sums[0] += vector(i);
  double sum = reduce_sum<double>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) sum += scalar(i);
  return sum;
}

inline __attribute__((always_inline)) double dot(const double* a, const double* b, int64_t n) {
  return sum_of(
      n, [=](int64_t i) { return load(a + i) * load(b + i); },
      [=](int64_t i) { return a[i] * b[i]; });
}

inline __attribute__((always_inline)) void axpy(double s, const double* __restrict x,
                                                double* __restrict y, int64_t n) {
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) store(y + i, load(y + i) + s * load(x + i));
  for (; i < n; ++i) y[i] += s * x[i];
}

}  // namespace
}  // namespace kktorch::csrc
