#pragma once
// C (+)= A B, on the vectors or on the tiles of a machine. What differs between instruction sets
// lies behind these functions.
#include "csrc/attention/core/tile.h"
#ifdef KKTORCH_AMX
#include "csrc/attention/core/tile_amx.h"
#endif

namespace kktorch::csrc {
namespace {

#ifdef KKTORCH_AMX
template <typename E>
constexpr bool kOnTiles = std::is_same_v<E, BrainPairs> || std::is_same_v<E, SplitFloats>;
constexpr int64_t kRowStep = kTileSide;  // rows of products are best multiples
#else
template <typename E>
constexpr bool kOnTiles = false;
constexpr int64_t kRowStep = kTileRows;
#endif

/// C (+)= A B, or A^T B for a transposed A. Depth in words; columns are rounded up to whole
/// vectors. Every entry is one sum in the same order, wherever it lies in C.
template <typename E, bool kTransposed = false>
void multiply(int64_t rows, int64_t columns, int64_t depth, Left<typename E::Word> a,
              Right<typename E::Word> b, Sums<typename E::Acc> c, bool accumulate) {
#ifdef KKTORCH_AMX
  if constexpr (kOnTiles<E>)
    return multiply_amx<E, kTransposed>(rows, columns, depth, a, b, c, accumulate);
#endif
  multiply_vectors<E, kTransposed>(rows, columns, depth, a, b, c, accumulate);
}

/// Sums over the depth of the products of a vector of columns of two operands, each in the order in
/// which `multiply` sums an entry.
template <typename E>
Vector<typename E::Acc> column_products(const typename E::Word* a, int64_t a_stride,
                                        const typename E::Word* b, int64_t b_stride,
                                        int64_t depth) {
#ifdef KKTORCH_AMX
  if constexpr (std::is_same_v<E, BrainPairs>)
    return column_products_amx(a, a_stride, b, b_stride, depth);
#endif
  return column_products_vectors<E>(a, a_stride, b, b_stride, depth);
}

/// Whoever calls `multiply` has one: tiles are a state of the thread, and others use them, too.
struct MultiplySession {
#ifdef KKTORCH_AMX
  ~MultiplySession() { Tiles::release(); }
#endif
};

}  // namespace
}  // namespace kktorch::csrc
