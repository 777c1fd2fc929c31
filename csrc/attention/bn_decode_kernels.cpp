// Built once per instruction-set tier (KKTORCH_TIER).
#include <algorithm>
#include <cmath>

#include "csrc/attention/bn_decode.h"
#include "csrc/attention/bn_formulas.h"
#include "csrc/attention/core/softmax.h"
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

// Keys whose sums do not wait for each other. More of them are more streams than the processor
// fetches ahead: 4 keys of 128 float32 take 1.1 times as long, 8 keys 1.3 times.
constexpr int kTogether = 2;

/// logits[i] = sum_d q_d (k_d - x0_d) of the kKeys keys from `key[j]` on.
template <int kKeys, typename T, typename A = acc_t<T>>
inline void score(const Rows<const T>& key, int64_t j, const A* q, const A* shift, int64_t D,
                  A* logits) {
  using V = Vector<A>;
  V sums[kKeys] = {};
  int64_t d = 0;
  for (; d + kLanes<A> <= D; d += kLanes<A>) {
    const auto qd = load<V>(q + d), x0 = load<V>(shift + d);
#pragma GCC unroll 2
    for (int i = 0; i < kKeys; ++i) sums[i] += qd * (load_converted(key[j + i] + d) - x0);
  }
  for (int i = 0; i < kKeys; ++i) {
    logits[i] = reduce_sum<A>(sums[i]);
    for (int64_t e = d; e < D; ++e) logits[i] += q[e] * (static_cast<A>(key[j + i][e]) - shift[e]);
  }
}

/// out += sum_i p_i v_i over the kKeys values from `value[j]` on.
template <int kKeys, typename T, typename A = acc_t<T>>
inline void add_values(const Rows<const T>& value, int64_t j, const A* p, int64_t Dv, A* out) {
  using V = Vector<A>;
  int64_t e = 0;
  for (; e + kLanes<A> <= Dv; e += kLanes<A>) {
    auto sum = load<V>(out + e);
#pragma GCC unroll 2
    for (int i = 0; i < kKeys; ++i) sum += p[i] * load_converted(value[j + i] + e);
    store(out + e, sum);
  }
  for (; e < Dv; ++e)
    for (int i = 0; i < kKeys; ++i) out[e] += p[i] * static_cast<A>(value[j + i][e]);
}

/// Logits of one row against `keys` keys of a block become e^(s - m'), 0 behind them; the sum and
/// the output of the row are rescaled.
template <typename T, typename A = acc_t<T>>
void softmax_block(A* logits, int64_t keys, const DecodeRows<A>& rows, int64_t row, int64_t Dv) {
  using V = Vector<A>;
  std::fill(logits + keys, logits + kDecodeBlock, -kInfinity<A>);
  auto largest = broadcast(rows.max[row]);
  for (int64_t j = 0; j < keys; j += kLanes<A>) largest = larger(load<V>(logits + j), largest);
  const A top = reduce_max<A>(largest);
  if (top > rows.max[row] && rows.sum[row] > 0) {
    const A factor = std::exp(rows.max[row] - top);
    A* __restrict out = rows.out + row * Dv;
    rows.sum[row] *= factor;
    for (int64_t e = 0; e < Dv; ++e) out[e] *= factor;
  }
  rows.max[row] = top;
  V sum{};
  for (int64_t j = 0; j < keys; j += kLanes<A>) {
    const auto p = exp2_for<T>((load<V>(logits + j) - top) * static_cast<A>(kLog2E));
    store(logits + j, p);
    sum += p;
  }
  rows.sum[row] += reduce_sum<A>(sum);
}

/// One row and the `keys` keys and values from `begin` on; logits: [kDecodeBlock].
template <typename T, typename A = acc_t<T>>
void attend_block(const DecodeHead<T>& head, int64_t begin, int64_t keys, const DecodeRows<A>& rows,
                  int64_t row, const A* shift, A* logits) {
  const A* q = rows.query + row * head.D;
  A* const out = rows.out + row * head.Dv;
  const int64_t whole = keys / kTogether * kTogether;
  for (int64_t j = 0; j < whole; j += kTogether)
    score<kTogether>(head.key, begin + j, q, shift, head.D, logits + j);
  for (int64_t j = whole; j < keys; ++j)
    score<1>(head.key, begin + j, q, shift, head.D, logits + j);
  softmax_block<T>(logits, keys, rows, row, head.Dv);
  for (int64_t j = 0; j < whole; j += kTogether)
    add_values<kTogether>(head.value, begin + j, logits + j, head.Dv, out);
  for (int64_t j = whole; j < keys; ++j)
    add_values<1>(head.value, begin + j, logits + j, head.Dv, out);
}

template <typename T, typename A = acc_t<T>>
void attend(const DecodeHead<T>& head, int64_t begin, int64_t end, const DecodeRows<A>& rows,
            A* scratch) {
  const int64_t R = head.G * head.T_new;
  A *const logits = scratch, *const shift = scratch + kDecodeBlock;
  std::fill_n(rows.max, R, -kInfinity<A>);
  std::fill_n(rows.sum, R, A{0});
  std::fill_n(rows.out, R * head.Dv, A{0});
  const A* first = load_row(head.key[0], head.D, shift);
  if (first != shift) std::copy_n(first, head.D, shift);
  for (int64_t block = begin; block < end; block += kDecodeBlock) {
    const int64_t last = std::min(block + kDecodeBlock, end);
    for (int64_t row = 0; row < R; ++row) {
      const int64_t seen = std::min(last, head.past + row % head.T_new + 1) - block;
      if (seen > 0) attend_block(head, block, seen, rows, row, shift, logits);
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
