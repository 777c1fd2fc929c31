#pragma once
// Vectors of float64 of the instruction-set tier that is being built. Internal linkage, because
// every tier needs its own copy; included by tiered sources only.
#include <cstdint>

namespace kktorch::csrc {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 8;
#elif defined(__AVX__)
constexpr int64_t kLanes = 4;
#else
constexpr int64_t kLanes = 2;
#endif
typedef double Vector __attribute__((vector_size(kLanes * sizeof(double)), may_alias));
typedef double UnalignedVector
    __attribute__((vector_size(kLanes * sizeof(double)), may_alias, aligned(8)));

inline __attribute__((always_inline)) Vector load(const double* p) {
  return *reinterpret_cast<const UnalignedVector*>(p);
}
inline __attribute__((always_inline)) void store(double* p, Vector v) {
  *reinterpret_cast<UnalignedVector*>(p) = v;
}

/// sum_i over [0, n): `vector(i)` gives kLanes terms from i on, `scalar(i)` one. Two accumulators.
template <typename V, typename S>
inline __attribute__((always_inline)) double sum_of(int64_t n, const V& vector, const S& scalar) {
  Vector sum0 = {}, sum1 = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    sum0 += vector(i);
    sum1 += vector(i + kLanes);
  }
  if (i + kLanes <= n) {
    sum0 += vector(i);
    i += kLanes;
  }
  sum0 += sum1;
  double sum = 0;
  for (int64_t l = 0; l < kLanes; ++l) sum += sum0[l];
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
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(y + i) + s * load(x + i));
  for (; i < n; ++i) y[i] += s * x[i];
}

}  // namespace
}  // namespace kktorch::csrc
