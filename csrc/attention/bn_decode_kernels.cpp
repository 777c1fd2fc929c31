// Built once per instruction-set tier (KKTORCH_TIER): plain loops for the vectoriser.
#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/attention/bn_decode.h"
#include "csrc/attention/bn_formulas.h"
#include "csrc/common/row_convert.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

template <typename T, typename A = acc_t<T>>
void advance(const DecodeHead<T>& head, const Rows<const T>* query, const A* beta, A eps,
             bool use_std, A scale, RunningMoments<A> moments, const DecodeRows<A>& rows,
             A* scratch) {
  const int64_t D = head.D;
  A* const shift = scratch;
  const A* first = load_row(head.key[0], D, scratch);
  if (first != shift) std::copy_n(first, D, shift);
  for (int64_t t = 0; t < head.T_new; ++t) {
    const A n = static_cast<A>(head.past + t + 1);
    const A* __restrict k = load_row(head.key[head.past + t], D, scratch + D);
    A* __restrict mean = moments.mean, * __restrict m2 = moments.m2;
    for (int64_t d = 0; d < D; ++d) {
      const A delta = k[d] - mean[d];
      mean[d] += delta / n;
      m2[d] += delta * (k[d] - mean[d]);
    }
    // With one key the softmax is constant: a = 0.
    for (int64_t g = 0; g < head.G; ++g) {
      const A* __restrict q = load_row(query[g][t], D, scratch + 2 * D);
      A* __restrict out = rows.query + (g * head.T_new + t) * D;
      for (int64_t d = 0; d < D; ++d) {
        const A a = n > 1 ? inverse_variance(m2[d] / n, eps, use_std) : A{0};
        out[d] = scale * a * shift_query(q[d], beta[g], shift[d], mean[d] - shift[d]);
      }
    }
  }
}

/// Independent partial sums, as wide as the widest vector: a reduction that may be vectorised.
template <typename A>
A dot(const A* __restrict a, const A* __restrict b, int64_t D) {
  constexpr int64_t kLanes = 64 / sizeof(A);
  A lanes[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += a[d + l] * b[d + l];
  for (int64_t l = 0; d + l < D; ++l) lanes[l] += a[d + l] * b[d + l];
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

/// e^x for x <= 0, relative error below 2e-7; NaN stays NaN. 2^(x log2 e) with the integer part in
/// the exponent bits and a polynomial (Taylor, degree 6) for the fraction in [-1/2, 1/2].
inline float exp_nonpositive(float x) {
  const float y = (x < -87.0f ? -87.0f : x) * 1.44269504088896f;
  const float rounded = (y + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: to the nearest integer
  const float f = (y - rounded) * 0.693147180559945f;
  const float p =
      1.0f +
      f * (1.0f + f * (0.5f + f * (1.0f / 6 + f * (1.0f / 24 + f * (1.0f / 120 + f / 720)))));
  const auto exponent = std::bit_cast<int32_t>(rounded + 12582912.0f) << 23;
  return std::bit_cast<float>(std::bit_cast<int32_t>(p) + exponent);
}
inline double exp_nonpositive(double x) { return std::exp(x); }

/// Logits of one row against a block become e^(s - m'); its sum and output are rescaled.
template <typename A>
void softmax_block(A* __restrict logits, int64_t keys, const DecodeRows<A>& rows, int64_t row,
                   int64_t Dv) {
  A top = rows.max[row];
  for (int64_t j = 0; j < keys; ++j) top = logits[j] > top ? logits[j] : top;
  if (top > rows.max[row] && rows.sum[row] > 0) {
    const A factor = std::exp(rows.max[row] - top);
    A* __restrict out = rows.out + row * Dv;
    rows.sum[row] *= factor;
    for (int64_t e = 0; e < Dv; ++e) out[e] *= factor;
  }
  rows.max[row] = top;
  for (int64_t j = 0; j < keys; ++j) logits[j] = exp_nonpositive(logits[j] - top);
  for (int64_t j = 0; j < keys; ++j) rows.sum[row] += logits[j];
}

template <typename A>
inline void subtract(const A* __restrict a, const A* __restrict b, int64_t D, A* __restrict c) {
  for (int64_t d = 0; d < D; ++d) c[d] = a[d] - b[d];
}

template <typename T, typename A = acc_t<T>>
void attend(const DecodeHead<T>& head, int64_t begin, int64_t end, const DecodeRows<A>& rows,
            A* scratch) {
  const int64_t D = head.D, Dv = head.Dv, R = head.G * head.T_new;
  A* const logits = scratch;
  A *const shift = scratch + R * kDecodeBlock, *const centred = shift + D,
           *const converted = centred + D;
  std::fill_n(rows.max, R, -std::numeric_limits<A>::infinity());
  std::fill_n(rows.sum, R, A{0});
  std::fill_n(rows.out, R * Dv, A{0});
  const A* first = load_row(head.key[0], D, shift);
  if (first != shift) std::copy_n(first, D, shift);
  /// Keys of the block that a row sees.
  const auto visible = [&](int64_t row, int64_t block) {
    return std::min(end, head.past + row % head.T_new + 1) - block;
  };
  for (int64_t block = begin; block < end; block += kDecodeBlock) {
    const int64_t keys = std::min(kDecodeBlock, end - block);
    for (int64_t j = 0; j < keys; ++j) {
      // Not converted in place: a loop whose input may be its output is not vectorised.
      const A* __restrict k = load_row(head.key[block + j], D, converted);
      subtract(k, shift, D, centred);
      for (int64_t row = 0; row < R; ++row)
        logits[row * kDecodeBlock + j] = dot(rows.query + row * D, centred, D);
    }
    for (int64_t row = 0; row < R; ++row) {
      const int64_t seen = std::min(keys, visible(row, block));
      if (seen <= 0) continue;
      softmax_block(logits + row * kDecodeBlock, seen, rows, row, Dv);
    }
    for (int64_t j = 0; j < keys; ++j) {
      const A* __restrict v = load_row(head.value[block + j], Dv, converted);
      for (int64_t row = 0; row < R; ++row) {
        if (j >= visible(row, block)) continue;
        const A p = logits[row * kDecodeBlock + j];
        A* __restrict out = rows.out + row * Dv;
        for (int64_t e = 0; e < Dv; ++e) out[e] += p * v[e];
      }
    }
  }
}

}  // namespace

template <typename T>
DecodeKernels<T> decode_kernels() {
  return {advance<T>, attend<T>};
}
template DecodeKernels<double> decode_kernels();
template DecodeKernels<float> decode_kernels();
template DecodeKernels<c10::BFloat16> decode_kernels();
template DecodeKernels<c10::Half> decode_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
