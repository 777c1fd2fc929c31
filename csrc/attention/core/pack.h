#pragma once
// Packing: rows of a tensor become operands of the micro-kernel. The affine maps of Attention-BN
// are applied on the way, in accumulation type, with one rounding.
#include <algorithm>

#include "csrc/attention/bn_formulas.h"
#include "csrc/attention/core/core.h"
#include "csrc/attention/core/multiply.h"
#include "csrc/common/prefetch.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// The size of blocks that cut `count` into as few as `most` allows, nearly equal and whole
/// multiples of `multiple`: a short last block would cost almost as much as a long one. `most` is a
/// multiple.
constexpr int64_t even_blocks(int64_t count, int64_t most, int64_t multiple) {
  const int64_t blocks = std::max<int64_t>(1, (count + most - 1) / most);
  return round_up((count + blocks - 1) / blocks, multiple);
}

/// Words of `elements` elements that follow each other in the depth.
template <typename E>
constexpr int64_t words(int64_t elements) {
  return (elements + E::kGroup - 1) / E::kGroup;
}

/// Width of rows of accumulators, and of words: whole vectors.
template <typename A>
constexpr int64_t padded(int64_t width) {
  return round_up(width, kLanes<A>);
}

/// Rows are handled in pairs and in square blocks of vectors: blocks have room for whole ones, and
/// the rows beyond the last are 0.
template <typename A>
constexpr int64_t padded_rows(int64_t rows) {
  return round_up(rows, std::max(2, kLanes<A>));
}

/// Rows of elements, `stride` words apart, zero from the width on to the stride.
template <typename E>
struct PackedRows {
  typename E::Word* data;
  int64_t stride;

  typename E::Element* operator[](int64_t row) const {
    return reinterpret_cast<typename E::Element*>(data + row * stride);
  }
  Left<typename E::Word> from(int64_t row) const { return {data + row * stride, stride}; }
};

/// The row as it is.
struct Identity {
  template <typename V, typename Count>
  V operator()(int64_t /*d*/, V x, Count /*count*/) const {
    return x;
  }
};

/// c of a key: ((k - x0) - m) r.
template <typename A>
struct KeyMap {
  KeyStatistics<A> s;

  template <typename Count>
  Vector<A> operator()(int64_t d, Vector<A> k, Count count) const {
    const auto at = [&](const A* row) { return load_row_part(row + d, count); };
    return ((k - at(s.shift)) - at(s.mean)) * at(s.rstd);
  }
};

/// q^ of a query: ((q - beta x0) - beta m) r, with the sign of the scale.
template <typename A>
struct QueryMap {
  KeyStatistics<A> s;
  A beta, sign;

  template <typename Count>
  Vector<A> operator()(int64_t d, Vector<A> q, Count count) const {
    const auto at = [&](const A* row) { return load_row_part(row + d, count); };
    return shift_query(q, broadcast(beta), at(s.shift), at(s.mean)) * (at(s.rstd) * sign);
  }
};

/// A short row: a call to copy it would cost as much.
template <typename T>
inline void copy_row(const T* from, int64_t width, T* to) {
  constexpr int64_t kStep = kVectorBytes / sizeof(T);
  int64_t d = 0;
  for (; d + kStep <= width; d += kStep) store(to + d, load<Vector<float>>(from + d));
  for (; d < width; ++d) to[d] = from[d];
}

/// to[d] = map(d, from[d]).
template <typename T, typename E, typename Map>
inline void pack_row(const T* from, int64_t width, const Map& map, const PackedRows<E>& to,
                     int64_t row) {
  using A = acc_t<T>;
  auto* const out = to[row];
  if constexpr (std::is_same_v<Map, Identity> && std::is_same_v<T, typename E::Element>) {
    copy_row(from, width, out);
    std::fill(out + width, out + to.stride * E::kGroup, typename E::Element(0));
  } else {
    // Lanes behind the width are 0, and so are their maps.
    for_each_part<A>(width, [&](int64_t d, auto count) {
      store_converted(out + d, map(d, load_row_part(from + d, count), count));
    });
    std::fill(out + round_up(width, kLanes<A>), out + to.stride * E::kGroup,
              typename E::Element(0));
  }
}

template <typename E>
inline void clear_rows(const PackedRows<E>& rows, int64_t begin, int64_t end) {
  std::fill(rows.data + begin * rows.stride, rows.data + end * rows.stride, typename E::Word(0));
}

/// c of the keys `keys`; 0 where the weight is 0, whatever the key holds.
template <typename T, typename E>
void pack_keys(const CoreProblem<T>& p, int64_t b, int64_t hk, Block keys,
               const PackedRows<E>& to) {
  using A = acc_t<T>;
  const KeyMap<A> map{p.statistics_of(b, hk)};
  const auto rows = p.key.of(b, hk);
  const A* weight = p.weight_of(b);
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    prefetch_behind(rows, j, p.D);
    if (weight && !(weight[j] > 0))
      clear_rows(to, j - keys.begin, j - keys.begin + 1);
    else
      pack_row<T, E>(rows[j], p.D, map, to, j - keys.begin);
  }
  clear_rows(to, keys.end - keys.begin, padded_rows<A>(keys.end - keys.begin));
}

/// The values of the keys `keys`; 0 where the weight is 0, because 0 times NaN would be NaN.
template <typename T, typename E>
void pack_values(const CoreProblem<T>& p, int64_t b, int64_t hk, Block keys,
                 const PackedRows<E>& to) {
  const auto rows = p.value.of(b, hk);
  const auto* weight = p.weight_of(b);
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    prefetch_behind(rows, j, p.Dv);
    if (weight && !(weight[j] > 0))
      clear_rows(to, j - keys.begin, j - keys.begin + 1);
    else
      pack_row<T, E>(rows[j], p.Dv, Identity{}, to, j - keys.begin);
  }
  clear_rows(to, keys.end - keys.begin, padded_rows<acc_t<T>>(keys.end - keys.begin));
}

/// q^ of the queries `queries`, with the sign of the scale; its size is left to the softmax, where
/// it costs no rounding of the operands.
template <typename T, typename E>
void pack_queries(const CoreProblem<T>& p, int64_t b, int64_t h, Block queries,
                  const PackedRows<E>& to) {
  using A = acc_t<T>;
  const QueryMap<A> map{p.statistics_of(b, h / p.group()), p.beta[h], A(p.scale < 0 ? -1 : 1)};
  const auto rows = p.query.of(b, h);
  for (int64_t i = queries.begin; i < queries.end; ++i) {
    prefetch_behind(rows, i, p.D);
    pack_row<T, E>(rows[i], p.D, map, to, i - queries.begin);
  }
  clear_rows(to, queries.end - queries.begin, padded_rows<A>(queries.end - queries.begin));
}

/// The rows as columns: depth is their words. `to` holds panels of [stride, kPanel].
template <typename E>
Right<typename E::Word> transposed(const PackedRows<E>& rows, int64_t count, typename E::Word* to) {
  using W = typename E::Word;
  constexpr int64_t kL = kLanes<W>, kP = kPanel<W>;
  const int64_t panel_stride = kP * rows.stride;
  for (int64_t row = 0; row < count; row += kL)
    for (int64_t word = 0; word < rows.stride; word += kL)
      transpose_square(rows.data + row * rows.stride + word, rows.stride,
                       to + row / kP * panel_stride + word * kP + row % kP, kP);
  return {to, kP, panel_stride};
}

/// The rows as rows: depth is their number. Single elements are used where they are; pairs join
/// two rows in `to`.
template <typename E>
Right<typename E::Word> upright(const PackedRows<E>& rows, int64_t count, int64_t width,
                                typename E::Word* to) {
  using W = typename E::Word;
  if constexpr (E::kGroup == 1) {
    return {rows.data, rows.stride, kPanel<W>};
  } else {
    const int64_t stride = padded<W>(width);
    for (int64_t row = 0; row < count; row += 2)
      for (int64_t column = 0; column < stride; column += kLanes<W>)
        E::join_rows(rows[row] + column, rows[row + 1] + column, to + row / 2 * stride + column);
    return {to, stride, kPanel<W>};
  }
}

}  // namespace
}  // namespace kktorch::csrc
