// Built once per instruction-set tier (KKTORCH_TIER).
#include <algorithm>
#include <type_traits>
#include <utility>

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

/// Outputs of a tile: as many as leave a register for every value besides the sums.
constexpr int kMostOutputs = kVectorBytes == 64 ? 6 : 3;

/// tile(std::integral_constant<int, outputs>, first) for all outputs, in even parts.
template <typename F>
inline void by_outputs(int64_t c, const F& tile) {
  const int64_t parts = (c + kMostOutputs - 1) / kMostOutputs;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * c / parts;
    const auto outputs = (part + 1) * c / parts - first;
    const auto call = [&]<int... k>(std::integer_sequence<int, k...>) {
      ((outputs == k + 1 ? tile(std::integral_constant<int, k + 1>(), first) : void()), ...);
    };
    call(std::make_integer_sequence<int, kMostOutputs>());
  }
}

/// The last `count` < kLanes lanes 1, the others 0: for a vector that ends where a row ends.
template <typename T>
inline Vector<T> last_lanes(int64_t count) {
  T mask[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) mask[i] = static_cast<T>(i >= kLanes<T> - count);
  return load<Vector<T>>(mask);
}

template <typename T, int kRows, int kOutputs>
inline void forward_tile(const T* const* F, const T* W, int64_t D, T* const* A) {
  Vector<T> sum[kRows][kOutputs] = {};
  const auto add = [&](const auto& take, const auto& weigh) {
    Vector<T> w[kOutputs];
#pragma GCC unroll 6
    for (int l = 0; l < kOutputs; ++l) w[l] = weigh(take(W + l * D));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto f = take(F[r]);
#pragma GCC unroll 6
      for (int l = 0; l < kOutputs; ++l) sum[r][l] += f * w[l];
    }
  };
  const auto as_is = [](Vector<T> w) { return w; };
  int64_t e = 0;
  for (; e + kLanes<T> <= D; e += kLanes<T>)
    add([e](const T* row) { return load<Vector<T>>(row + e); }, as_is);
  if (e < D && e > 0) {
    const auto mask = last_lanes<T>(D - e);
    add([D](const T* row) { return load<Vector<T>>(row + D - kLanes<T>); },
        [mask](Vector<T> w) { return w * mask; });
  } else if (e < D) {
    add([D](const T* row) { return load_part(row, D); }, as_is);
  }
  for (int r = 0; r < kRows; ++r)
    for (int l = 0; l < kOutputs; ++l) A[r][l] += reduce_sum<T>(sum[r][l]);
}

template <typename T>
void forward(const T* const* F, int64_t rows, const T* W, int64_t c, int64_t D, T* const* A) {
  by_outputs(c, [&](auto outputs, int64_t first) {
    T* out[4];
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      for (int i = 0; i < 4; ++i) out[i] = A[r + i] + first;
      forward_tile<T, 4, outputs>(F + r, W + first * D, D, out);
    }
    for (; r < rows; ++r) {
      out[0] = A[r] + first;
      forward_tile<T, 1, outputs>(F + r, W + first * D, D, out);
    }
  });
}

/// Lanes of G that a vector adds to.
enum class Part { kAll, kLast, kFirst };

/// kVectors whole vectors of G from e on; or one, of which the last (or the first) `part` lanes
/// count.
template <typename T, int kOutputs, int kVectors, Part kPart = Part::kAll>
inline void backward_tile(const T* const* F, int64_t rows, const T* const* R, int64_t first,
                          int64_t e, T* G, int64_t stride, int64_t part = 0) {
  const auto take = [part](const T* from) {
    return kPart == Part::kFirst ? load_part(from, part) : load<Vector<T>>(from);
  };
  Vector<T> sum[kOutputs][kVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    Vector<T> f[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) f[v] = take(F[r] + e + v * kLanes<T>);
#pragma GCC unroll 6
    for (int l = 0; l < kOutputs; ++l) {
      const auto weight = broadcast(R[r][first + l]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[l][v] += weight * f[v];
    }
  }
  for (int l = 0; l < kOutputs; ++l) {
    T* row = G + (first + l) * stride + e;
    for (int v = 0; v < kVectors; ++v, row += kLanes<T>) {
      if (kPart == Part::kLast) sum[l][v] *= last_lanes<T>(part);
      if (kPart == Part::kFirst)
        store_part(row, load_part(row, part) + sum[l][v], part);
      else
        store(row, load<Vector<T>>(row) + sum[l][v]);
    }
  }
}

template <typename T>
void backward(const T* const* F, int64_t rows, const T* const* R, int64_t c, int64_t D, T* G,
              int64_t stride) {
  by_outputs(c, [&](auto outputs, int64_t first) {
    constexpr int64_t kStep = kLanes<T>;
    int64_t e = 0;
    for (; e + 4 * kStep <= D; e += 4 * kStep)
      backward_tile<T, outputs, 4>(F, rows, R, first, e, G, stride);
    for (; e + kStep <= D; e += kStep)
      backward_tile<T, outputs, 1>(F, rows, R, first, e, G, stride);
    if (e < D && e > 0)
      backward_tile<T, outputs, 1, Part::kLast>(F, rows, R, first, D - kStep, G, stride, D - e);
    else if (e < D)
      backward_tile<T, outputs, 1, Part::kFirst>(F, rows, R, first, 0, G, stride, D);
  });
}

template <typename T, int kVectors>
inline void weigh_tile(const T* const* x, const T* W, int64_t groups, int64_t d, int64_t rows,
                       int64_t r, const T* g, T* a) {
  Vector<T> sum[kVectors] = {};
  for (int64_t j = 0; j < groups; ++j, W += d) {
    const T* column = x[j] + r;
    for (int64_t e = 0; e < d; ++e, column += rows) {
      const auto w = broadcast(W[e]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[v] += w * load<Vector<T>>(column + v * kLanes<T>);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    T* out = a + r + v * kLanes<T>;
    if (g) sum[v] *= load<Vector<T>>(g + r + v * kLanes<T>);
    store(out, load<Vector<T>>(out) + sum[v]);
  }
}

template <typename T>
void weigh(const T* const* x, const T* W, int64_t groups, int64_t d, int64_t rows, const T* g,
           T* a) {
  constexpr int64_t kStep = kLanes<T>;
  int64_t r = 0;
  for (; r + 8 * kStep <= rows; r += 8 * kStep) weigh_tile<T, 8>(x, W, groups, d, rows, r, g, a);
  for (; r + 2 * kStep <= rows; r += 2 * kStep) weigh_tile<T, 2>(x, W, groups, d, rows, r, g, a);
  for (; r < rows; r += kStep) weigh_tile<T, 1>(x, W, groups, d, rows, r, g, a);
}

template <typename T, int kColumns>
inline void correlate_tile(const T* x, const T* a, int64_t rows, T* G) {
  Vector<T> sum[kColumns] = {};
  for (int64_t r = 0; r < rows; r += kLanes<T>) {
    const auto weight = load<Vector<T>>(a + r);
#pragma GCC unroll 4
    for (int q = 0; q < kColumns; ++q) sum[q] += weight * load<Vector<T>>(x + q * rows + r);
  }
  for (int q = 0; q < kColumns; ++q) G[q] += reduce_sum<T>(sum[q]);
}

template <typename T>
void correlate(const T* x, const T* a, int64_t d, int64_t rows, T* G) {
  int64_t e = 0;
  for (; e + 4 <= d; e += 4) correlate_tile<T, 4>(x + e * rows, a, rows, G + e);
  if (d - e == 3) correlate_tile<T, 3>(x + e * rows, a, rows, G + e);
  if (d - e == 2) correlate_tile<T, 2>(x + e * rows, a, rows, G + e);
  if (d - e == 1) correlate_tile<T, 1>(x + e * rows, a, rows, G + e);
}

}  // namespace

template <typename T>
TileKernels<T> tile_kernels() {
  return {forward<T>, backward<T>, weigh<T>, correlate<T>};
}
template TileKernels<double> tile_kernels();
template TileKernels<float> tile_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
