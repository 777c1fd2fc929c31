#pragma once
// Vectors of the widest kind that this instruction-set tier has, as compiler vectors: arithmetic
// and comparisons are operators. Internal linkage, because every tier needs its own copy.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#include "csrc/common/row_convert.h"
#include "csrc/common/types.h"

namespace kktorch::csrc {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vector = typename VectorOf<A>::type;

template <typename A>
using Bits = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

template <typename A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <typename V, typename P>
inline V load(const P* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V, typename P>
inline void store(P* to, V v) {
  std::memcpy(to, &v, sizeof(V));
}

/// As many values as a vector of accumulators has lanes, converted.
template <typename T>
inline Vector<acc_t<T>> load_converted(const T* from) {
  using V = Vector<acc_t<T>>;
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    return load<V>(from);
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
    typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
    return reinterpret_cast<V>(__builtin_convertvector(load<Halves>(from), Words) << 16);
  } else {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(load<__m128i>(from));
#else
    V v;
    for (int i = 0; i < kLanes<float>; ++i) v[i] = static_cast<float>(from[i]);
    return v;
#endif
  }
}

/// Rounds to as many values as a vector of accumulators has lanes.
template <typename T>
inline void store_converted(T* to, Vector<acc_t<T>> v) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    store(to, v);
#if defined(__AVX512BF16__)
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    store(to, _mm512_cvtneps_pbh(v));
#endif
  } else {
    acc_t<T> values[kLanes<acc_t<T>>];
    store(values, v);
    store_row(values, kLanes<acc_t<T>>, to);
  }
}

/// How many of the lanes of a vector belong to a row.
template <typename A>
using AllLanes = std::integral_constant<int, kLanes<A>>;

/// The first `count` values, converted; the lanes behind them are 0.
template <typename T, typename Count>
inline Vector<acc_t<T>> load_row_part(const T* from, Count count) {
  if constexpr (std::is_same_v<Count, AllLanes<acc_t<T>>>) {
    return load_converted(from);
  } else {
    T part[kLanes<acc_t<T>>] = {};
    std::memcpy(part, from, count * sizeof(T));
    return load_converted(part);
  }
}

/// Rounds the first `count` values.
template <typename T, typename Count>
inline void store_row_part(T* to, Vector<acc_t<T>> v, Count count) {
  if constexpr (std::is_same_v<Count, AllLanes<acc_t<T>>>) {
    store_converted(to, v);
  } else {
    T part[kLanes<acc_t<T>>];
    store_converted(part, v);
    std::memcpy(to, part, count * sizeof(T));
  }
}

/// f(d, count) for a row of `width` values, a vector at a time; the last one may be a part.
template <typename A, typename F>
inline void for_each_part(int64_t width, const F& f) {
  int64_t d = 0;
  for (; d + kLanes<A> <= width; d += kLanes<A>) f(d, AllLanes<A>{});
  if (d < width) f(d, static_cast<int>(width - d));
}

template <typename A>
inline Vector<A> broadcast(A value) {
  return Vector<A>{} + value;
}

/// The larger of both, b where either is NaN.
template <typename V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}

/// Lane i becomes lane i + half. The lanes are constants, so that one instruction does it.
template <int kHalf, typename V, int... kLane>
inline V rotate_lanes(V v, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = sizeof...(kLane);
  return __builtin_shufflevector(v, v, (kLane + kHalf) % kCount...);
}

/// f of all lanes, halves first.
template <typename A, int kHalf = kLanes<A> / 2, typename F>
inline A reduce(Vector<A> v, const F& f) {
  if constexpr (kHalf == 0)
    return v[0];
  else
    return reduce<A, kHalf / 2>(
        f(v, rotate_lanes<kHalf>(v, std::make_integer_sequence<int, kLanes<A>>{})), f);
}

template <typename A>
inline A reduce_sum(Vector<A> v) {
  return reduce<A>(v, [](auto a, auto b) { return a + b; });
}

template <typename A>
inline A reduce_max(Vector<A> v) {
  return reduce<A>(v, [](auto a, auto b) { return larger(a, b); });
}

/// 2^f on |f| <= 1/2, exact at 0. Minimax for float (relative error 1e-4 and 2e-9), the Taylor
/// series for double.
constexpr float kExp2Low[] = {1.f, 0.693282927f, 0.242210959f, 0.0550089312f};
constexpr float kExp2High[] = {1.f,
                               0.693147203f,
                               0.240226479f,
                               0.0555033247f,
                               0.00961843736f,
                               0.00133988744f,
                               0.000153533621f};
constexpr double kExp2Double[] = {1.,
                                  0.69314718055994531,
                                  0.24022650695910071,
                                  0.055504108664821580,
                                  0.0096181291076284772,
                                  0.0013333558146428443,
                                  1.5403530393381609e-4,
                                  1.5252733804059841e-5,
                                  1.3215486790144309e-6,
                                  1.0178086009239700e-7,
                                  7.0549116208011233e-9,
                                  4.4455382718708114e-10,
                                  2.5678435993488205e-11,
                                  1.3691488853904129e-12};

/// 2^n p, n a whole number: 0 below the normal numbers.
template <typename A>
inline Vector<A> scale_by_power(Vector<A> p, Vector<A> n);

/// x minus the nearest whole number; finite where x is -inf.
template <typename A>
inline Vector<A> fraction(Vector<A> x);

#ifdef __AVX512DQ__
template <>
inline Vector<float> scale_by_power<float>(Vector<float> p, Vector<float> n) {
  return _mm512_scalef_ps(p, n);
}
template <>
inline Vector<double> scale_by_power<double>(Vector<double> p, Vector<double> n) {
  return _mm512_scalef_pd(p, n);
}
template <>
inline Vector<float> fraction<float>(Vector<float> x) {
  return _mm512_reduce_ps(x, 0);
}
template <>
inline Vector<double> fraction<double>(Vector<double> x) {
  return _mm512_reduce_pd(x, 0);
}
#else
/// Added to a number, leaves its nearest whole number in the last bits: 1.5 2^(digits - 1).
template <typename A>
constexpr A kWholeBits = sizeof(A) == 8 ? A(6755399441055744.) : A(12582912.);
template <typename A>
constexpr A kLowestPower = sizeof(A) == 8 ? A(-1021) : A(-125);

template <typename A>
inline Vector<A> scale_by_power(Vector<A> p, Vector<A> n) {
  using Integers = Vector<Bits<A>>;
  constexpr int kMantissa = sizeof(A) == 8 ? 52 : 23;
  const auto lowest = broadcast(kLowestPower<A>);
  const auto exponent = reinterpret_cast<Integers>(larger(lowest, n) + kWholeBits<A>) << kMantissa;
  const auto scaled = reinterpret_cast<Vector<A>>(reinterpret_cast<Integers>(p) + exponent);
  return n < lowest ? Vector<A>{} : scaled;
}

template <typename A>
inline Vector<A> fraction(Vector<A> x) {
  const auto finite = larger(broadcast(2 * kLowestPower<A>), x);
  return finite - ((finite + kWholeBits<A>)-kWholeBits<A>);
}
#endif

/// 2^x by a polynomial with the given coefficients; 0 of -inf, NaN of NaN.
template <typename A, int64_t kTerms>
inline Vector<A> exp2(Vector<A> x, const A (&coefficients)[kTerms]) {
  const auto f = fraction<A>(x);
  auto p = broadcast(coefficients[kTerms - 1]);
#pragma GCC unroll 16
  for (int64_t k = kTerms - 2; k >= 0; --k) p = p * f + coefficients[k];
  return scale_by_power<A>(p, x - f);
}

/// A square block of words, as many as a vector has lanes: rows become columns. Each of the log2
/// stages interleaves row i with row i + half.
template <typename A>
inline void transpose_square(const A* from, int64_t from_stride, A* to, int64_t to_stride) {
  using V = Vector<A>;
  constexpr int kL = kLanes<A>, kHalf = kL / 2;
  Vector<Bits<A>> low, high;
  for (int i = 0; i < kL; ++i) {
    low[i] = i / 2 + i % 2 * kL;
    high[i] = i / 2 + i % 2 * kL + kHalf;
  }
  V rows[kL], mixed[kL];
#pragma GCC unroll 16
  for (int i = 0; i < kL; ++i) rows[i] = load<V>(from + i * from_stride);
#pragma GCC unroll 4
  for (int stage = 1; stage < kL; stage *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + kHalf], low);
      mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kHalf], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kL; ++i) rows[i] = mixed[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kL; ++i) store(to + i * to_stride, rows[i]);
}

}  // namespace
}  // namespace kktorch::csrc
