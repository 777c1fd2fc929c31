#pragma once
// The micro-kernel on AMX: sums in tiles of 16 x 16, operands in tiles of 16 rows of 16 words.
//
// No machine with AMX has run it: it is compiled, and tested on emulated tiles.
#include "csrc/attention/bn_global.h"
#include "csrc/attention/core/tile.h"
#ifdef KKTORCH_EMULATE_AMX
#include "csrc/attention/core/amx_emulated.h"
#else
#include "csrc/attention/core/amx.h"
#endif

namespace kktorch::csrc {
namespace {

constexpr int64_t kTileSide = 16;
constexpr int64_t kTileWords = kTileSide * kTileSide;

/// float32 as two bfloat16, x = high + low + O(2^-17 |x|); products leave out low times low. A word
/// of A holds (high, low); B is multiplied twice, as (low, 0) and as (high, high).
struct SplitFloats : Scalars<float> {};

/// High and low part, in the upper halves of the lanes. What is not finite is all high.
struct SplitVector {
  Vector<int32_t> high, low;

  explicit SplitVector(Vector<float> x) : high(rounded(x)) {
    const auto rest = x - reinterpret_cast<Vector<float>>(high);
    low = rest == rest ? rounded(rest) : Vector<int32_t>{};
  }

 private:
  static Vector<int32_t> rounded(Vector<float> x) {
    const auto halves = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
    return reinterpret_cast<Vector<int32_t>>(_mm512_cvtepu16_epi32(halves)) << 16;
  }
};

/// Words of the upper halves of two vectors, the first one below.
inline Vector<int32_t> join_halves(Vector<int32_t> first, Vector<int32_t> second) {
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
  return reinterpret_cast<Vector<int32_t>>(reinterpret_cast<Words>(first) >> 16) | second;
}

/// A tile of an operand: rows of words, `stride` words apart.
struct TileSource {
  const float* data;
  int64_t stride;
};

/// Rows become columns. Only `depth` rows are read.
inline TileSource transposed_tile(TileSource from, int64_t depth, float* buffer) {
  if (depth == kTileSide) {
    transpose_square(from.data, from.stride, buffer, kTileSide);
  } else {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t i = 0; i < kTileSide; ++i)
        buffer[i * kTileSide + k] = from.data[k * from.stride + i];
  }
  return {buffer, kTileSide};
}

/// The tile of A from `row` and `k` on: in the memory of A, or made in `buffer`.
template <typename E, bool kTransposed>
inline TileSource left_tile(Left<float> a, int64_t row, int64_t k, int64_t rows, int64_t depth,
                            float* buffer) {
  TileSource tile{a.data + row * a.stride + k, a.stride};
  if constexpr (kTransposed)
    tile = transposed_tile({a.data + k * a.stride + row, a.stride}, depth, buffer);
  if constexpr (std::is_same_v<E, SplitFloats>) {
    for (int64_t i = 0; i < rows; ++i) {
      const SplitVector x(load<Vector<float>>(tile.data + i * tile.stride));
      store(buffer + i * kTileSide, join_halves(x.high, x.low));
    }
    tile = {buffer, kTileSide};
  }
  return tile;
}

/// Tiles 0 to 3 are sums, 4 and 5 hold A, 6 and 7 hold B.
template <int kDown>
inline void add_products(TileSource b, int across) {
  Tiles::load(6 + across, b.data, b.stride);
#pragma GCC unroll 2
  for (int i = 0; i < kDown; ++i) Tiles::multiply(2 * i + across);
}

template <typename E, int kDown>
inline void add_column(TileSource b, int64_t depth, int across) {
  if constexpr (std::is_same_v<E, SplitFloats>) {
    alignas(64) float high[kTileWords], low[kTileWords];
    for (int64_t k = 0; k < depth; ++k) {
      const SplitVector x(load<Vector<float>>(b.data + k * b.stride));
      store(high + k * kTileSide, join_halves(x.high, x.high));
      store(low + k * kTileSide, join_halves(x.low, Vector<int32_t>{}));
    }
    add_products<kDown>({low, kTileSide}, across);
    add_products<kDown>({high, kTileSide}, across);
  } else {
    add_products<kDown>(b, across);
  }
}

/// kDown x kAcross tiles of C. `rows` and `depth` are those of one tile, as configured.
template <typename E, bool kTransposed, int kDown, int kAcross>
inline void multiply_tiles(int64_t rows, int64_t row, Left<float> a, const float* b,
                           int64_t b_stride, Block words, int64_t depth, Sums<float> c,
                           bool accumulate) {
  alignas(64) float buffer[kDown][kTileWords];
#pragma GCC unroll 4
  for (int t = 0; t < kDown * kAcross; ++t) {
    const int i = t / kAcross, j = t % kAcross;
    if (accumulate)
      Tiles::load(2 * i + j, c[row + i * kTileSide] + j * kTileSide, c.stride);
    else
      Tiles::zero(2 * i + j);
  }
  for (int64_t k = words.begin; k < words.end; k += depth) {
#pragma GCC unroll 2
    for (int i = 0; i < kDown; ++i) {
      const auto tile =
          left_tile<E, kTransposed>(a, row + i * kTileSide, k, rows, depth, buffer[i]);
      Tiles::load(4 + i, tile.data, tile.stride);
    }
#pragma GCC unroll 2
    for (int j = 0; j < kAcross; ++j)
      add_column<E, kDown>({b + k * b_stride + j * kTileSide, b_stride}, depth, j);
  }
#pragma GCC unroll 4
  for (int t = 0; t < kDown * kAcross; ++t) {
    const int i = t / kAcross, j = t % kAcross;
    Tiles::store(2 * i + j, c[row + i * kTileSide] + j * kTileSide, c.stride);
  }
}

/// Columns of C from `column` on, one or two tiles of them, for rows that fill tiles of `rows`.
template <typename E, bool kTransposed, int kAcross>
void multiply_columns(Block range, int64_t rows, Left<float> a, const float* b, int64_t b_stride,
                      Block words, int64_t depth, Sums<float> c, bool accumulate) {
  int64_t row = range.begin;
  for (; row + 2 * rows <= range.end; row += 2 * rows)
    multiply_tiles<E, kTransposed, 2, kAcross>(rows, row, a, b, b_stride, words, depth, c,
                                               accumulate);
  if (row < range.end)
    multiply_tiles<E, kTransposed, 1, kAcross>(rows, row, a, b, b_stride, words, depth, c,
                                               accumulate);
}

/// As `multiply`: what fills tiles, then the rest of the depth, then both for the rest of the rows.
/// So every entry is one sum in the same order, wherever it lies.
template <typename E, bool kTransposed>
void multiply_amx(int64_t rows, int64_t columns, int64_t depth, Left<float> a, Right<float> b,
                  Sums<float> c, bool accumulate) {
  constexpr int64_t kPair = 2 * kTileSide;
  static_assert(kPanel<float> % kPair == 0, "pairs of tiles do not leave a panel");
  const auto cut = [](int64_t size) { return size / kTileSide * kTileSide; };
  const auto tile_side = [](Block range) { return std::min(kTileSide, range.end - range.begin); };
  for (const Block range : {Block{0, cut(rows)}, Block{cut(rows), rows}}) {
    for (const Block words : {Block{0, cut(depth)}, Block{cut(depth), depth}}) {
      if (range.begin == range.end || words.begin == words.end) continue;
      const int64_t side = tile_side(range), step = tile_side(words);
      Tiles::configure(side, step);
      const bool add = accumulate || words.begin > 0;
      for (int64_t column = 0; column < columns; column += kPair) {
        const float* from =
            b.data + column / kPanel<float> * b.panel_stride + column % kPanel<float>;
        const Sums<float> to{c.data + column, c.stride};
        if (columns - column > kTileSide)
          multiply_columns<E, kTransposed, 2>(range, side, a, from, b.stride, words, step, to, add);
        else
          multiply_columns<E, kTransposed, 1>(range, side, a, from, b.stride, words, step, to, add);
      }
    }
  }
}

/// Sums over the depth of products of columns, in the order in which `multiply_amx` forms them: a
/// tile keeps one sum of the first and one of the second values of words, and adds both to C.
inline Vector<float> column_products_amx(const float* a, int64_t a_stride, const float* b,
                                         int64_t b_stride, int64_t depth) {
  using V = Vector<float>;
  using I = Vector<int32_t>;
  const auto first = [](V v) { return reinterpret_cast<V>(reinterpret_cast<I>(v) << 16); };
  const auto second = [](V v) { return reinterpret_cast<V>(reinterpret_cast<I>(v) & ~0xffff); };
  V sum{};
  for (int64_t begin = 0; begin < depth; begin += kTileSide) {
    V firsts{}, seconds{};
    for (int64_t k = begin; k < std::min(begin + kTileSide, depth); ++k) {
      const auto x = load<V>(a + k * a_stride), y = load<V>(b + k * b_stride);
      firsts = _mm512_fmadd_ps(first(x), first(y), firsts);
      seconds = _mm512_fmadd_ps(second(x), second(y), seconds);
    }
    sum += firsts + seconds;
  }
  return sum;
}

}  // namespace
}  // namespace kktorch::csrc
