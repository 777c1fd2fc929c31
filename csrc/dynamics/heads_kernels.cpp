// Built once per instruction-set tier (KKTORCH_TIER). All products between tokens and heads are
// lane products; what lies between them works on the vectors of a sample while they are in the
// first cache.
#include <algorithm>

#include "csrc/attention/core/vector.h"
#include "csrc/dynamics/heads.h"
#include "csrc/dynamics/lane_product.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

template <typename A>
using Vec = Vector<A>;

constexpr double kLog2E = 1.4426950408889634;

template <typename A>
inline Vec<A> exp2_of(Vec<A> x) {
  if constexpr (sizeof(A) == 8)
    return exp2(x, kExp2Double);
  else
    return exp2(x, kExp2High);
}

/// 2^x - 1 for x >= 0, without the cancellation near 0: 2^n (2^f - 1) + (2^n - 1).
template <typename A, int64_t kTerms>
inline Vec<A> exp2_minus_1(Vec<A> x, const A (&coefficients)[kTerms]) {
  const auto f = fraction<A>(x), n = x - f;
  auto p = broadcast(coefficients[kTerms - 1]);
#pragma GCC unroll 16
  for (int64_t k = kTerms - 2; k >= 1; --k) p = p * f + coefficients[k];
  return scale_by_power<A>(p * f, n) + (scale_by_power<A>(broadcast(A(1)), n) - 1);
}

/// tanh x = e / (e + 2), e = exp(2 |x|) - 1, with the sign of x; NaN of NaN.
template <typename A>
inline Vec<A> tanh_of(Vec<A> x) {
  const Vec<A> size = x < 0 ? -x : x;
  const Vec<A> power = size * static_cast<A>(2 * kLog2E), most = broadcast(A(60));
  const Vec<A> bounded = power > most ? most : power;
  Vec<A> e;
  if constexpr (sizeof(A) == 8)
    e = exp2_minus_1(bounded, kExp2Double);
  else
    e = exp2_minus_1(bounded, kExp2High);
  const Vec<A> h = e / (e + 2);
  return x < 0 ? -h : h;
}

/// Queries that are multiplied with W at once: enough rows to fill the tiles.
constexpr int64_t kGroupRows = 32;

template <typename A>
int64_t group_samples(const HeadSamples<A>& s) {
  return std::max<int64_t>(1, kGroupRows / s.num_queries);
}

template <typename A>
int64_t scratch_size(const HeadSamples<A>& s) {
  return kLanes<A> * (group_samples(s) * s.num_queries * s.width + 2 * s.num_queries * s.length);
}

template <typename A>
void pack(const A* parameter, const HeadLayout& l, int64_t heads, A* block) {
  for (int64_t r = 0; r < l.rows; ++r)
    for (int64_t c = 0; c < l.columns; ++c, block += kLanes<A>) {
      const A* const from = parameter + r * l.row_stride + c * l.column_stride;
      for (int64_t h = 0; h < heads; ++h) block[h] = from[h * l.head_stride];
      std::fill(block + heads, block + kLanes<A>, A(0));
    }
}

template <typename A>
void unpack(const A* block, const HeadLayout& l, int64_t heads, A* parameter) {
  for (int64_t r = 0; r < l.rows; ++r)
    for (int64_t c = 0; c < l.columns; ++c, block += kLanes<A>) {
      A* const to = parameter + r * l.row_stride + c * l.column_stride;
      for (int64_t h = 0; h < heads; ++h) to[h * l.head_stride] = block[h];
    }
}

/// Scores of a query over its row become p; with y_s = <x_s, u> also b, and st is returned.
template <typename A>
inline Vec<A> attend(A* __restrict p, const A* __restrict y, A* __restrict b, int64_t length) {
  using V = Vec<A>;
  constexpr int64_t lanes = kLanes<A>;
  V max = load<V>(p);
  for (int64_t s = 1; s < length; ++s) max = larger(load<V>(p + s * lanes), max);
  V sum{}, weighted{};
  for (int64_t s = 0; s < length; ++s) {
    const V e = exp2_of<A>((load<V>(p + s * lanes) - max) * static_cast<A>(kLog2E));
    sum += e;
    weighted += e * load<V>(y + s * lanes);
    store(p + s * lanes, e);
  }
  const V scale = broadcast(A(1)) / sum, st = weighted * scale;
  for (int64_t s = 0; s < length; ++s) {
    const V probability = load<V>(p + s * lanes) * scale;
    store(p + s * lanes, probability);
    store(b + s * lanes, probability * (load<V>(y + s * lanes) - st));
  }
  return st;
}

template <typename A>
void forward(const HeadSamples<A>& samples, int64_t first, int64_t last, const A* W, const A* U,
             A* attended, int64_t attended_stride, A* sums, A* scratch) {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t T = samples.length, Q = samples.num_queries, d = samples.width;
  const int64_t group = group_samples(samples);
  A* const projected = scratch;  // [group * Q, d]
  A* const y = scratch + group * Q * d * lanes;
  for (int64_t begin = first; begin < last; begin += group) {
    const int64_t count = std::min(group, last - begin);
    lane_product<A>({{samples.queries + begin * Q * d, d, 1},
                     {W, d * lanes, lanes},
                     {projected, d * lanes, lanes},
                     d,
                     false},
                    count * Q, d);
    for (int64_t i = begin; i < begin + count; ++i) {
      const Strided<const A> tokens{samples.tokens + i * T * d, d, 1};
      A* const p = attended + (i - first) * attended_stride;
      A* const b = p + Q * T * lanes;
      const A* const mine = projected + (i - begin) * Q * d * lanes;
      lane_product<A>({tokens, {mine, lanes, d * lanes}, {p, lanes, T * lanes}, d, false}, T, Q);
      lane_product<A>({tokens, {U, lanes, d * lanes}, {y, lanes, T * lanes}, d, false}, T, Q);
      for (int64_t q = 0; q < Q; ++q)
        store(sums + ((i - first) * Q + q) * lanes,
              attend(p + q * T * lanes, y + q * T * lanes, b + q * T * lanes, T));
    }
  }
}

/// out_qe (+)= sum_s rows_qs x_se
template <typename A>
inline void mix_tokens(const HeadSamples<A>& samples, int64_t index, const A* rows, A* out,
                       bool accumulate) {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t T = samples.length, d = samples.width;
  lane_product<A>({{samples.tokens + index * T * d, 1, d},
                   {rows, lanes, T * lanes},
                   {out, lanes, d * lanes},
                   T,
                   accumulate},
                  d, samples.num_queries);
}

template <typename A>
void backward(const HeadSamples<A>& samples, int64_t first, int64_t last, const A* attended,
              int64_t attended_stride, const A* weights, A* gW, A* gU, A* scratch) {
  using V = Vec<A>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t T = samples.length, Q = samples.num_queries, d = samples.width;
  const int64_t group = group_samples(samples), entries = 2 * Q * T;
  A* const g = scratch;  // [group * Q, d]
  A* const weighted = scratch + group * Q * d * lanes;
  for (int64_t begin = first; begin < last; begin += group) {
    const int64_t count = std::min(group, last - begin);
    for (int64_t i = begin; i < begin + count; ++i) {
      const A* const from = attended + (i - first) * attended_stride;
      const V weight = load<V>(weights + (i - first) * lanes);
      for (int64_t j = 0; j < entries; ++j)
        store(weighted + j * lanes, load<V>(from + j * lanes) * weight);
      mix_tokens(samples, i, weighted, gU, true);
      mix_tokens(samples, i, weighted + Q * T * lanes, g + (i - begin) * Q * d * lanes, false);
    }
    lane_product<A>({{samples.queries + begin * Q * d, 1, d},
                     {g, d * lanes, lanes},
                     {gW, d * lanes, lanes},
                     count * Q,
                     true},
                    d, d);
  }
}

template <typename A>
void features(const HeadSamples<A>& samples, int64_t index, const A* attended, A* z, A* g) {
  mix_tokens(samples, index, attended, z, false);
  mix_tokens(samples, index, attended + samples.num_queries * samples.length * kLanes<A>, g, false);
}

template <typename A>
void activate(Activation activation, const A* s, int64_t count, A* h, A* derivative) {
  using V = Vec<A>;
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    const V x = load<V>(s + i);
    V value = x, slope = broadcast(A(1));
    if (activation == Activation::kTanh) {
      value = tanh_of<A>(x);
      slope = 1 - value * value;
    } else if (activation == Activation::kSigmoid) {
      value = 1 / (1 + exp2_of<A>(x * static_cast<A>(-kLog2E)));
      slope = value * (1 - value);
    }
    store(h + i, value);
    store(derivative + i, slope);
  }
}

}  // namespace

template <typename T>
HeadKernels<T> head_kernels() {
  return {kLanes<T>,  scratch_size<T>, pack<T>,     unpack<T>,
          forward<T>, backward<T>,     features<T>, activate<T>};
}
template HeadKernels<double> head_kernels();
template HeadKernels<float> head_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
