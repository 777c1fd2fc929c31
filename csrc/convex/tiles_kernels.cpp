// Built once per instruction-set tier (KKTORCH_TIER).
#include <algorithm>

#include "csrc/attention/core/vector.h"
#include "csrc/convex/tiles.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

/// The first `count` < kLanes values, zeros behind them.
template <typename T>
inline Vector<T> load_part(const T* from, int64_t count) {
  T values[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = from[i];
  return load<Vector<T>>(values);
}

template <typename T>
inline void store_part(T* to, Vector<T> v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}

template <typename T, int kRows, int kOutputs>
inline void forward_tile(const T* const* F, const T* W, int64_t D, T* const* A) {
  Vector<T> sum[kRows][kOutputs] = {};
  const auto add = [&](const auto& take) {
    Vector<T> w[kOutputs];
#pragma GCC unroll 4
    for (int l = 0; l < kOutputs; ++l) w[l] = take(W + l * D);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto f = take(F[r]);
#pragma GCC unroll 4
      for (int l = 0; l < kOutputs; ++l) sum[r][l] += f * w[l];
    }
  };
  int64_t e = 0;
  for (; e + kLanes<T> <= D; e += kLanes<T>)
    add([e](const T* row) { return load<Vector<T>>(row + e); });
  if (e < D) add([e, D](const T* row) { return load_part(row + e, D - e); });
  for (int r = 0; r < kRows; ++r)
    for (int l = 0; l < kOutputs; ++l) A[r][l] += reduce_sum<T>(sum[r][l]);
}

template <typename T, int kOutputs>
inline void forward_outputs(const T* const* F, int64_t rows, const T* W, int64_t D, int64_t first,
                            T* const* A) {
  int64_t r = 0;
  T* out[4];
  for (; r + 4 <= rows; r += 4) {
    for (int i = 0; i < 4; ++i) out[i] = A[r + i] + first;
    forward_tile<T, 4, kOutputs>(F + r, W + first * D, D, out);
  }
  for (; r < rows; ++r) {
    out[0] = A[r] + first;
    forward_tile<T, 1, kOutputs>(F + r, W + first * D, D, out);
  }
}

template <typename T>
void forward(const T* const* F, int64_t rows, const T* W, int64_t c, int64_t D, T* const* A) {
  int64_t l = 0;
  for (; l + 4 <= c; l += 4) forward_outputs<T, 4>(F, rows, W, D, l, A);
  if (c - l == 3) forward_outputs<T, 3>(F, rows, W, D, l, A);
  if (c - l == 2) forward_outputs<T, 2>(F, rows, W, D, l, A);
  if (c - l == 1) forward_outputs<T, 1>(F, rows, W, D, l, A);
}

/// kVectors whole vectors of G from e on, or one vector of which `part` values exist.
template <typename T, int kOutputs, int kVectors, bool kPart = false>
inline void backward_tile(const T* const* F, int64_t rows, const T* const* R, int64_t first,
                          int64_t D, int64_t e, T* G, int64_t stride) {
  Vector<T> sum[kOutputs][kVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    Vector<T> f[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      f[v] = kPart ? load_part(F[r] + e, D - e) : load<Vector<T>>(F[r] + e + v * kLanes<T>);
#pragma GCC unroll 4
    for (int l = 0; l < kOutputs; ++l) {
      const auto weight = broadcast(R[r][first + l]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[l][v] += weight * f[v];
    }
  }
  for (int l = 0; l < kOutputs; ++l) {
    T* row = G + (first + l) * stride + e;
    for (int v = 0; v < kVectors; ++v, row += kLanes<T>)
      if (kPart)
        store_part(row, load_part(row, D - e) + sum[l][v], D - e);
      else
        store(row, load<Vector<T>>(row) + sum[l][v]);
  }
}

template <typename T, int kOutputs>
inline void backward_outputs(const T* const* F, int64_t rows, const T* const* R, int64_t first,
                             int64_t D, T* G, int64_t stride) {
  constexpr int64_t kStep = kLanes<T>;
  int64_t e = 0;
  for (; e + 4 * kStep <= D; e += 4 * kStep)
    backward_tile<T, kOutputs, 4>(F, rows, R, first, D, e, G, stride);
  for (; e + kStep <= D; e += kStep)
    backward_tile<T, kOutputs, 1>(F, rows, R, first, D, e, G, stride);
  if (e < D) backward_tile<T, kOutputs, 1, true>(F, rows, R, first, D, e, G, stride);
}

template <typename T>
void backward(const T* const* F, int64_t rows, const T* const* R, int64_t c, int64_t D, T* G,
              int64_t stride) {
  int64_t l = 0;
  for (; l + 4 <= c; l += 4) backward_outputs<T, 4>(F, rows, R, l, D, G, stride);
  if (c - l == 3) backward_outputs<T, 3>(F, rows, R, l, D, G, stride);
  if (c - l == 2) backward_outputs<T, 2>(F, rows, R, l, D, G, stride);
  if (c - l == 1) backward_outputs<T, 1>(F, rows, R, l, D, G, stride);
}

}  // namespace

template <typename T>
TileKernels<T> tile_kernels() {
  return {forward<T>, backward<T>};
}
template TileKernels<double> tile_kernels();
template TileKernels<float> tile_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
