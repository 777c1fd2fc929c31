#pragma once
// Products of a matrix of numbers that all lanes share with a matrix of vectors:
//
//     c_rj (+)= sum_k a_rk b_kj        a: numbers; b, c: vectors, one lane per head
//
// Register tiles; internal linkage, because every instruction-set tier needs its own copy.
#include "csrc/attention/core/vector.h"

namespace kktorch::csrc {
namespace {

/// Element (r, c) lies at data + r * row + c * column, in numbers.
template <typename P>
struct Strided {
  P* data;
  int64_t row, column;
  P* at(int64_t r, int64_t c) const { return data + r * row + c * column; }
};

template <typename A>
struct LaneProduct {
  Strided<const A> a, b;
  Strided<A> c;
  int64_t depth;
  bool accumulate;
};

template <int kRows, int kColumns, typename A>
inline void product_tile(const LaneProduct<A>& p, int64_t row, int64_t column) {
  using V = Vector<A>;
  V sum[kRows][kColumns];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j)
      sum[r][j] = p.accumulate ? load<V>(p.c.at(row + r, column + j)) : V{};
  for (int64_t k = 0; k < p.depth; ++k) {
    V b[kColumns];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) b[j] = load<V>(p.b.at(k, column + j));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V a = broadcast(*p.a.at(row + r, k));
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j) sum[r][j] += a * b[j];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) store(p.c.at(row + r, column + j), sum[r][j]);
}

/// Rows from `row` on, in tiles of kRows and then of half as many.
template <int kRows, int kColumns, typename A>
inline void product_rows(const LaneProduct<A>& p, int64_t row, int64_t rows, int64_t column) {
  for (; row + kRows <= rows; row += kRows) product_tile<kRows, kColumns>(p, row, column);
  if constexpr (kRows > 1)
    if (row < rows) product_rows<kRows / 2, kColumns>(p, row, rows, column);
}

/// Tiles fill the registers: 32 vectors with AVX-512, 16 otherwise.
template <typename A>
inline void lane_product(const LaneProduct<A>& p, int64_t rows, int64_t columns) {
  constexpr int kTall = kVectorBytes == 64 ? 16 : 8, kWide = kTall / 2;
  int64_t column = 0;
  for (; column + 3 <= columns; column += 3) product_rows<kWide, 3>(p, 0, rows, column);
  if (column + 2 == columns) product_rows<kWide, 2>(p, 0, rows, column);
  if (column + 1 == columns) product_rows<kTall, 1>(p, 0, rows, column);
}

}  // namespace
}  // namespace kktorch::csrc
