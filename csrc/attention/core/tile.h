#pragma once
// The micro-kernel on vectors: C (+)= A B on a tile of C that stays in registers.
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>

#include "csrc/attention/core/vector.h"
#include "csrc/common/types.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace kktorch::csrc {
namespace {

/// How products are formed. Operands consist of words, and a word of kGroup elements that follow
/// each other in the depth of the product.
template <typename A>
struct Scalars {
  using Acc = A;
  using Element = A;
  using Word = A;
  static constexpr int kGroup = 1;
  static Vector<A> multiply_add(Word a, Vector<A> b, Vector<A> c) { return a * b + c; }
  static Vector<A> multiply_add(Vector<A> a, Vector<A> b, Vector<A> c) { return a * b + c; }
};

#ifdef __AVX512BF16__
struct BrainPairs {
  using Acc = float;
  using Element = c10::BFloat16;
  using Word = float;  // two bfloat16, moved as one
  static constexpr int kGroup = 2;
  static Vector<float> multiply_add(Word a, Vector<float> b, Vector<float> c) {
    return multiply_add(reinterpret_cast<Vector<float>>(broadcast_bits(a)), b, c);
  }
  static Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static Vector<int32_t> broadcast_bits(Word a) {
    int32_t bits;
    std::memcpy(&bits, &a, sizeof(bits));
    return broadcast(bits);
  }

  /// A row of values in bfloat16.
  static void round(Element* to, Vector<float> values) { store(to, _mm512_cvtneps_pbh(values)); }

  /// Two rows of values in bfloat16, and their words: one value of each row.
  static void round_two(Vector<float> first, Vector<float> second, Element* to_first,
                        Element* to_second, Word* to_words) {
    const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    const auto low = _mm512_castsi512_si256(both), high = _mm512_extracti64x4_epi64(both, 1);
    store(to_first, low);
    store(to_second, high);
    store(to_words, join(low, high));
  }

  /// The words of two rows: as many values of each as a vector has words.
  static void join_rows(const Element* first, const Element* second, Word* to) {
    store(to, join(load<__m256i>(first), load<__m256i>(second)));
  }

 private:
  static __m512i join(__m256i first, __m256i second) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(first),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
  }
};
#endif

/// How values of storage type T are multiplied: bfloat16 in pairs where the machine can.
template <typename T>
struct ArithmeticOf {
#ifdef __AVX512BF16__
  using type = std::conditional_t<std::is_same_v<T, c10::BFloat16>, BrainPairs, Scalars<acc_t<T>>>;
#else
  using type = Scalars<acc_t<T>>;
#endif
};
template <typename T>
using Arithmetic = typename ArithmeticOf<T>::type;

/// Registers of a tile: kTileRows x kTileVectors accumulators. 32 registers hold 24 of them, 16
/// hold 12.
#ifdef __AVX512F__
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif
constexpr int kTileRows = 6;

/// Columns of a tile.
template <typename A>
constexpr int64_t kPanel = kTileVectors* kLanes<A>;

/// A, by words: [rows, depth], or [depth, rows] if it is read transposed.
template <typename W>
struct Left {
  const W* data;
  int64_t stride;
};

/// B, by words: depth rows of [columns]; tiles of columns are `panel_stride` apart.
template <typename W>
struct Right {
  const W* data;
  int64_t stride, panel_stride;
};

/// C, or any block of accumulators: [rows, columns], rows padded to whole vectors.
template <typename A>
struct Sums {
  A* data;
  int64_t stride;
  A* operator[](int64_t row) const { return data + row * stride; }
};

template <typename E, bool kTransposed, int kRows, int kVectors>
inline void multiply_tile(Left<typename E::Word> a, const typename E::Word* b, int64_t b_stride,
                          int64_t depth, Sums<typename E::Acc> c, bool accumulate) {
  using V = Vector<typename E::Acc>;
  constexpr int kL = kLanes<typename E::Acc>;
  V sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[i][v] = V{};
  for (int64_t k = 0; k < depth; ++k, b += b_stride) {
    V row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = load<V>(b + v * kL);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const auto word = kTransposed ? a.data[k * a.stride + i] : a.data[i * a.stride + k];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[i][v] = E::multiply_add(word, row[v], sums[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      store(c[i] + v * kL, accumulate ? load<V>(c[i] + v * kL) + sums[i][v] : sums[i][v]);
}

template <typename E, bool kTransposed, int kRows, int kVectors>
void multiply_rows(int64_t rows, Left<typename E::Word> a, const typename E::Word* b,
                   int64_t b_stride, int64_t depth, Sums<typename E::Acc> c, bool accumulate) {
  for (; rows >= kRows; rows -= kRows) {
    multiply_tile<E, kTransposed, kRows, kVectors>(a, b, b_stride, depth, c, accumulate);
    a.data += kTransposed ? kRows : kRows * a.stride;
    c.data += kRows * c.stride;
  }
  if constexpr (kRows > 1) {
    if (rows > 0)
      multiply_rows<E, kTransposed, kRows - 1, kVectors>(rows, a, b, b_stride, depth, c,
                                                         accumulate);
  }
}

template <typename E, bool kTransposed, int kVectors>
void multiply_panel(int64_t vectors, int64_t rows, Left<typename E::Word> a,
                    const typename E::Word* b, int64_t b_stride, int64_t depth,
                    Sums<typename E::Acc> c, bool accumulate) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors)
      return multiply_panel<E, kTransposed, kVectors - 1>(vectors, rows, a, b, b_stride, depth, c,
                                                          accumulate);
  }
  multiply_rows<E, kTransposed, kTileRows, kVectors>(rows, a, b, b_stride, depth, c, accumulate);
}

/// Words of the depth that are summed one after the other before C takes their sum: rounding errors
/// of long sums would grow with the root of their length, and panels of B would leave the L1 cache.
constexpr int64_t kChain = 64;

/// `multiply` (multiply.h) on vectors.
template <typename E, bool kTransposed>
void multiply_vectors(int64_t rows, int64_t columns, int64_t depth, Left<typename E::Word> a,
                      Right<typename E::Word> b, Sums<typename E::Acc> c, bool accumulate) {
  using A = typename E::Acc;
  for (int64_t column = 0; column < columns; column += kPanel<A>) {
    const int64_t left = std::min(columns - column, kPanel<A>);
    const auto* panel = b.data + column / kPanel<A> * b.panel_stride;
    for (int64_t k = 0; k < depth; k += kChain)
      multiply_panel<E, kTransposed, kTileVectors>(
          (left + kLanes<A> - 1) / kLanes<A>, rows,
          {a.data + (kTransposed ? k * a.stride : k), a.stride}, panel + k * b.stride, b.stride,
          std::min(kChain, depth - k), {c.data + column, c.stride}, accumulate || k > 0);
  }
}

/// `column_products` (multiply.h), in the order of `multiply_vectors`.
template <typename E>
Vector<typename E::Acc> column_products_vectors(const typename E::Word* a, int64_t a_stride,
                                                const typename E::Word* b, int64_t b_stride,
                                                int64_t depth) {
  using V = Vector<typename E::Acc>;
  V total{};
  for (int64_t begin = 0; begin < depth; begin += kChain) {
    V sum{};
    for (int64_t k = begin; k < std::min(begin + kChain, depth); ++k)
      sum = E::multiply_add(load<V>(a + k * a_stride), load<V>(b + k * b_stride), sum);
    total = begin == 0 ? sum : total + sum;
  }
  return total;
}

}  // namespace
}  // namespace kktorch::csrc
