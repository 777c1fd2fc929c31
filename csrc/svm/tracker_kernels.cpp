// Built once per instruction-set tier (KKTORCH_TIER).
//
// Tokens are widened, which is exact, on their way from memory into float64 registers, row after
// row: several rows side by side would take the machine's prefetching out of step. Four rows at a
// time have the lanes of their sums added up by shared shuffles.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "csrc/svm/tracker.h"
#include "csrc/svm/vector.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kRows = 4;

// As many numbers as Doubles has lanes. By name, because GCC splits a conversion between vectors of
// different size into halves; with a mask, because GCC 12 warns of an undefined operand without.
inline __attribute__((always_inline)) Doubles widen(const double* from) { return load(from); }
#if defined(__AVX512F__)
inline __attribute__((always_inline)) Doubles widen(const float* from) {
  return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(from));
}
inline __attribute__((always_inline)) Doubles widen(const c10::BFloat16* from) {
  const auto words = _mm256_cvtepu16_epi32(csrc::load<__m128i>(from));
  return _mm512_maskz_cvtps_pd(0xff, _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)));
}
inline __attribute__((always_inline)) Doubles widen(const c10::Half* from) {
  return _mm512_maskz_cvtps_pd(0xff, _mm256_cvtph_ps(csrc::load<__m128i>(from)));
}
#elif defined(__AVX2__)
inline __attribute__((always_inline)) Doubles widen(const float* from) {
  return _mm256_cvtps_pd(_mm_loadu_ps(from));
}
inline __attribute__((always_inline)) __m128i load_four(const void* from) {
  return _mm_loadl_epi64(static_cast<const __m128i*>(from));
}
inline __attribute__((always_inline)) Doubles widen(const c10::BFloat16* from) {
  const auto words = _mm_cvtepu16_epi32(load_four(from));
  return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(words, 16)));
}
inline __attribute__((always_inline)) Doubles widen(const c10::Half* from) {
  return _mm256_cvtps_pd(_mm_cvtph_ps(load_four(from)));
}
#else
template <typename T>
inline __attribute__((always_inline)) Doubles widen(const T* from) {
  Doubles v;
  for (int64_t i = 0; i < kDoubles; ++i) v[i] = static_cast<float>(from[i]);
  return v;
}
#endif

/// Lane i: a[i] + a[i + stride]; where i has the bit `stride`: b[i - stride] + b[i].
template <int kStride, int... kLane>
inline __attribute__((always_inline)) Doubles fold(Doubles a, Doubles b,
                                                   std::integer_sequence<int, kLane...>) {
  constexpr int kCount = sizeof...(kLane);
  return __builtin_shufflevector(a, b, (kLane & kStride ? kCount + kLane - kStride : kLane)...) +
         __builtin_shufflevector(a, b, (kLane & kStride ? kCount + kLane : kLane + kStride)...);
}

/// Lane i: the sum of the lanes of v[i]. There are as many vectors as lanes.
template <int kCount = kDoubles>
inline __attribute__((always_inline)) Doubles lane_sums(const Doubles* v) {
  if constexpr (kCount == 1)
    return v[0];
  else
    return fold<kCount / 2>(lane_sums<kCount / 2>(v), lane_sums<kCount / 2>(v + kCount / 2),
                            std::make_integer_sequence<int, kDoubles>{});
}

/// x.y and x.x of the first whole vectors of a row, by lanes.
/// @return how many numbers they hold.
template <typename T>
inline __attribute__((always_inline)) int64_t add_row(const T* x, const double* y, int64_t n,
                                                      Doubles* logit, Doubles* square) {
  constexpr int64_t kStep = 8;
  Doubles l[2] = {}, s[2] = {};  // alternating, against the latency of additions
  int64_t d = 0;
  for (; d + kStep * kDoubles <= n; d += kStep * kDoubles)
#pragma GCC unroll 8
    for (int64_t i = 0; i < kStep; ++i) {
      const Doubles v = widen(x + d + i * kDoubles);
      l[i % 2] += v * load(y + d + i * kDoubles);
      s[i % 2] += v * v;
    }
  for (; d + kDoubles <= n; d += kDoubles) {
    const Doubles v = widen(x + d);
    l[0] += v * load(y + d);
    s[0] += v * v;
  }
  *logit = l[0] + l[1];
  *square = s[0] + s[1];
  return d;
}

/// x_r.y and x_r.x of kRows rows, added up in the same order for every row.
template <typename T>
inline __attribute__((always_inline)) void products(const T* const* x, const double* y, int64_t n,
                                                    double* logit, double* square) {
  Doubles sums[2 * kRows];
  int64_t d = 0;
#pragma GCC unroll 4
  for (int64_t r = 0; r < kRows; ++r) d = add_row(x[r], y, n, sums + r, sums + kRows + r);
  double totals[2 * kRows];
#pragma GCC unroll 4
  for (int64_t i = 0; i < 2 * kRows; i += kDoubles) store(totals + i, lane_sums(sums + i));
  for (; d < n; ++d)
    for (int64_t r = 0; r < kRows; ++r) {
      const auto value = static_cast<double>(x[r][d]);
      totals[r] += value * y[d];
      totals[kRows + r] += value * value;
    }
  std::copy_n(totals, kRows, logit);
  std::copy_n(totals + kRows, kRows, square);
}

/// Logits of the entries [begin, begin + size).
/// @return the largest square of a token.
template <typename T>
inline double logits_of(const TokenSetsView<T>& sets, int64_t begin, int64_t size, const double* y,
                        double* logits) {
  double longest = 0;
  for (int64_t t = 0; t < size; t += kRows) {
    const T* rows[kRows];  // beyond the end the last one again
    for (int64_t r = 0; r < kRows; ++r) rows[r] = sets.token(begin + std::min(t + r, size - 1));
    double logit[kRows], square[kRows];
    products(rows, y, sets.dx, logit, square);
    std::copy_n(logit, std::min(kRows, size - t), logits + t);
    for (int64_t r = 0; r < kRows; ++r) longest = std::max(longest, square[r]);
  }
  return longest;
}

inline bool all_finite(const double* values, int64_t n) {
  return 0 == sum_of(
                  n, [=](int64_t i) { return 0.0 * load(values + i); },
                  [=](int64_t i) { return 0.0 * values[i]; });
}

/// Of values [n] without NaN, n >= 1.
inline double largest_of(const double* values, int64_t n) {
  double result = values[0];
  int64_t i = 0;
  if (n >= kDoubles) {
    Doubles v = load(values);
    for (i = kDoubles; i + kDoubles <= n; i += kDoubles) v = larger(v, load(values + i));
    result = reduce_max<double>(v);
  }
  for (; i < n; ++i) result = std::max(result, values[i]);
  return result;
}

constexpr double kLowest = -709;

/// exp(x) for kLowest <= x <= 0: 2^n times the Taylor polynomial of the rest, |rest| <= log(2) / 2,
/// whose remainder is below rounding. 0 stands for results below the normal numbers.
inline __attribute__((always_inline)) double exponential(double x) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 2^52: its last bits are the integer
  constexpr double kInverse[] = {1.0,
                                 1.0,
                                 1.0 / 2,
                                 1.0 / 6,
                                 1.0 / 24,
                                 1.0 / 120,
                                 1.0 / 720,
                                 1.0 / 5040,
                                 1.0 / 40320,
                                 1.0 / 362880,
                                 1.0 / 3628800,
                                 1.0 / 39916800,
                                 1.0 / 479001600,
                                 1.0 / 6227020800};
  const double shifted = x * 1.4426950408889634 + kShift;
  const double n = shifted - kShift;
  const double rest = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = kInverse[13];
  for (int k = 12; k >= 0; --k) p = p * rest + kInverse[k];
  const auto power = std::bit_cast<int64_t>(shifted) << 52;
  return x < -708 ? 0 : std::bit_cast<double>(std::bit_cast<int64_t>(p) + power);
}

/// Softmax of scale L over one set: the largest probability and the entropy
/// log Z - sum_t s_t (l_t - max l).
inline void softmax_of(const double* logits, int64_t size, double scale, double top,
                       double* probability, double* entropy) {
  constexpr int64_t kBlock = 64;
  double total = 0, weighted = 0, l[kBlock], e[kBlock];
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t count = std::min(kBlock, size - begin);
    for (int64_t t = 0; t < count; ++t) {
      l[t] = std::max(scale * (logits[begin + t] - top), kLowest);
      e[t] = exponential(l[t]);
    }
    total += sum_of(
        count, [&](int64_t i) { return load(e + i); }, [&](int64_t i) { return e[i]; });
    weighted += dot(e, l, count);
  }
  *probability = 1 / total;
  *entropy = std::log(total) - weighted / total;
}

/// Finite logits of one set become margins, in place.
inline void margins_of(double* logits, int64_t size, int64_t selected, double* least,
                       int64_t* least_at) {
  const double chosen = logits[selected];
  logits[selected] = -kInfinity;
  *least = chosen - largest_of(logits, size);  // the smallest difference: rounding is monotone
  for (int64_t t = 0; t < size; ++t) logits[t] = chosen - logits[t];
  *least_at = *least < kInfinity ? std::find(logits, logits + size, *least) - logits : -1;
  logits[selected] = 0;
}

template <typename T>
void margins(const TokenSetsView<T>& sets, const double* y, const int64_t* given, double scale,
             int64_t first, int64_t last, const MarginOutputs& out) {
  for (int64_t q = first; q < last; ++q) {
    const int64_t begin = sets.row_ptr[q], size = sets.row_ptr[q + 1] - begin;
    double* logits = out.margin + begin;
    const double square = logits_of(sets, begin, size, y + q * sets.dx, logits);
    if (!all_finite(logits, size)) {
      std::fill_n(logits, size, kNaN);
      out.selected[q] = given ? given[q] : 0;
      out.least[q] = out.probability[q] = out.entropy[q] = out.longest[q] = kNaN;
      out.least_at[q] = -1;
      continue;
    }
    const double top = largest_of(logits, size);
    out.selected[q] = given ? given[q] : std::find(logits, logits + size, top) - logits;
    out.longest[q] = std::sqrt(square);
    softmax_of(logits, size, scale, top, out.probability + q, out.entropy + q);
    margins_of(logits, size, out.selected[q], out.least + q, out.least_at + q);
  }
}

template <typename T>
void dual(const TokenSetsView<T>& sets, const int64_t* alpha, const double* g, int64_t first,
          int64_t last, double* u, double* mass) {
  const int64_t dx = sets.dx;
  for (int64_t q = first; q < last; ++q) {
    double* __restrict sum = u + q * dx;
    std::fill_n(sum, dx, 0.0);
    double total = 0;
    const T* const chosen = sets.token(sets.row_ptr[q] + alpha[q]);
    for (int64_t k = sets.row_ptr[q]; k < sets.row_ptr[q + 1]; ++k) {
      // NaN is not <= 0 and is passed on.
      if (k == sets.row_ptr[q] + alpha[q] || g[k] <= 0) continue;
      const double weight = g[k];
      total += weight;
      const T* const other = sets.token(k);
      int64_t d = 0;
      for (; d + kDoubles <= dx; d += kDoubles)
        store(sum + d, load(sum + d) + weight * (widen(chosen + d) - widen(other + d)));
      for (; d < dx; ++d)
        sum[d] += weight * (static_cast<double>(chosen[d]) - static_cast<double>(other[d]));
    }
    mass[q] = total;
  }
}

}  // namespace

template <typename T>
TrackerKernels<T> tracker_kernels() {
  return {margins<T>, dual<T>};
}
template TrackerKernels<double> tracker_kernels();
template TrackerKernels<float> tracker_kernels();
template TrackerKernels<c10::BFloat16> tracker_kernels();
template TrackerKernels<c10::Half> tracker_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
