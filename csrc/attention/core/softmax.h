#pragma once
// Probabilities from blocks of scores in base 2, forward (online) and backward (from the row
// log-sum-exp).
#include <cmath>
#include <limits>

#include "csrc/attention/core/pack.h"

namespace kktorch::csrc {
namespace {

template <typename A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.69314718055994531;

/// 2^x as precisely as results of storage type T deserve.
template <typename T>
inline Vector<acc_t<T>> exp2_for(Vector<acc_t<T>> x) {
  if constexpr (std::is_same_v<T, double>)
    return exp2(x, kExp2Double);
  else if constexpr (std::is_same_v<T, c10::BFloat16>)
    return exp2(x, kExp2Low);
  else
    return exp2(x, kExp2High);
}

/// Columns of a row of scores: whole vectors, for pairs an even number of them; those beyond the
/// last key hold -inf.
template <typename E>
constexpr int64_t score_columns(int64_t columns) {
  return round_up(columns, E::kGroup * kLanes<typename E::Acc>);
}

/// Whether scores are brought to the unit 1 before the softmax: so that something can be added to
/// them, and with a scale of 0, which would make NaN of -inf.
template <typename T>
inline bool scores_are_scaled(const CoreProblem<T>& p) {
  return p.weight || p.mask.bias || p.scale == 0;
}

template <typename A>
inline A row_max(const A* scores, int64_t columns) {
  using V = Vector<A>;
  V max = broadcast(-kInfinity<A>);
  for (int64_t j = 0; j < columns; j += kLanes<A>) max = larger(load<V>(scores + j), max);
  return reduce_max<A>(max);
}

/// The exponent of 2 that a score stands for is unit * score.
template <typename A>
inline A unit_of(A scale) {
  return std::abs(scale) * static_cast<A>(kLog2E);
}

/// Turns a row of scores into 2^(unit (score - origin)), over the scores or, narrower, beside them;
/// returns the sum.
template <typename T, typename E = Arithmetic<T>>
inline acc_t<T> exponentiate_row(acc_t<T>* scores, int64_t columns, acc_t<T> unit, acc_t<T> origin,
                                 typename E::Element* probabilities) {
  using A = acc_t<T>;
  using V = Vector<A>;
  V sum{};
  for (int64_t j = 0; j < columns; j += kLanes<A>) {
    const V p = exp2_for<T>((load<V>(scores + j) - origin) * unit);
    sum += p;
    if constexpr (E::kGroup == 1)
      store(scores + j, p);
    else
      E::round(probabilities + j, p);
  }
  return reduce_sum<A>(sum);
}

/// What the online softmax knows of its rows, and of their scores with a new block of keys. Whole
/// vectors of rows. A row that has seen no key has max = -inf, sum = 0.
template <typename A>
struct OnlineRows {
  A *max, *sum;
  A *block_max, *block_sum;
  A* origin;  // the maximum so far, or 0
  A* factor;  // by which sums over earlier blocks shrink

  void begin(int64_t rows) const {
    std::fill_n(max, rows, -kInfinity<A>);
    std::fill_n(sum, rows, A(0));
  }

  /// Rows [first, first + rows), of which block_max is known.
  template <typename T>
  void raise_max(int64_t first, int64_t rows, A unit) const {
    using V = Vector<A>;
    for (int64_t i = first; i < first + rows; i += kLanes<A>) {
      const V before = load<V>(max + i), now = larger(load<V>(block_max + i), before);
      store(max + i, now);
      store(origin + i, now == -kInfinity<A> ? V{} : now);
      store(factor + i, now == before ? V{} + 1 : exp2_for<T>((before - now) * unit));
    }
  }

  /// The same rows, of which block_sum is known by now.
  void add_sums(int64_t first, int64_t rows) const {
    using V = Vector<A>;
    for (int64_t i = first; i < first + rows; i += kLanes<A>)
      store(sum + i, load<V>(sum + i) * load<V>(factor + i) + load<V>(block_sum + i));
  }
};

/// What backward knows of its queries, one entry for each: log-sum-exp in base 2 (+inf where the
/// probabilities are 0), rounded and what the rounding left, and delta = sum_e do_e o_e.
template <typename A>
struct QueryRows {
  A *logsumexp, *remainder, *delta;

  /// From the natural log-sum-exp. Large logits would feel a rounded product.
  void set_logsumexp(int64_t i, A natural_logsumexp) const {
    const double exact = static_cast<double>(natural_logsumexp) * kLog2E;
    const bool blind = natural_logsumexp == -kInfinity<A>;
    logsumexp[i] = blind ? kInfinity<A> : static_cast<A>(exact);
    remainder[i] = std::isfinite(logsumexp[i]) ? static_cast<A>(exact - logsumexp[i]) : 0;
  }

  /// A vector of queries.
  struct Columns {
    Vector<A> logsumexp, remainder, delta;
  };
  Columns at(int64_t i) const {
    using V = Vector<A>;
    return {load<V>(logsumexp + i), load<V>(remainder + i), load<V>(delta + i)};
  }
};

/// Scores and dP of a block, by key: [keys, queries].
template <typename E>
struct ScoreBlock {
  Sums<typename E::Acc> scores, gradients;
  PackedRows<E> probabilities, score_gradients;  // where elements are narrower than accumulators
  typename E::Word* pairs;                       // of score_gradients: two keys, one query
};

/// P and dS = P o (dP - delta), up to scale, of one vector of scores and dP.
template <typename T>
struct Differentiated {
  using V = Vector<acc_t<T>>;
  V p, ds;

  Differentiated(V score, V gradient, acc_t<T> unit,
                 const typename QueryRows<acc_t<T>>::Columns& queries)
      : p(exp2_for<T>((score * unit - queries.logsumexp) - queries.remainder)),
        ds(p * (gradient - queries.delta)) {}
};

/// The same for a row, over the scores and dP.
template <typename T, typename A = acc_t<T>>
inline void differentiate_row(A* __restrict scores, A* __restrict gradients, A unit,
                              const QueryRows<A> queries, int64_t columns) {
  using V = Vector<A>;
  for (int64_t i = 0; i < columns; i += kLanes<A>) {
    const Differentiated<T> row(load<V>(scores + i), load<V>(gradients + i), unit, queries.at(i));
    store(scores + i, row.p);
    store(gradients + i, row.ds);
  }
}

/// Two rows of scores and dP, and where their P, their dS and the pairs of these go.
template <typename E>
struct RowPair {
  const float *first_scores, *second_scores, *first_gradients, *second_gradients;
  typename E::Element *first_p, *second_p, *first_ds, *second_ds;
  typename E::Word* pairs;
};

template <typename T, typename E>
inline void differentiate_pair(const RowPair<E> rows, float unit, const QueryRows<float> queries,
                               int64_t columns) {
  using V = Vector<float>;
  const auto [score_1, score_2, gradient_1, gradient_2, p_1, p_2, ds_1, ds_2, pairs] = rows;
  for (int64_t i = 0; i < columns; i += kLanes<float>) {
    const auto at = queries.at(i);
    const Differentiated<T> first(load<V>(score_1 + i), load<V>(gradient_1 + i), unit, at);
    const Differentiated<T> second(load<V>(score_2 + i), load<V>(gradient_2 + i), unit, at);
    E::round(p_1 + i, first.p);
    E::round(p_2 + i, second.p);
    E::round_two(first.ds, second.ds, ds_1 + i, ds_2 + i, pairs + i);
  }
}

/// A block of keys: P and dS as operands, over the scores and dP, or beside them in element type.
/// An odd row is paired with a row that gives P = dS = 0.
template <typename T, typename E = Arithmetic<T>>
inline void differentiate_scores(const ScoreBlock<E>& block, const QueryRows<acc_t<T>>& queries,
                                 acc_t<T> unit, int64_t keys, int64_t columns) {
  using A = acc_t<T>;
  if constexpr (E::kGroup == 1) {
    for (int64_t j = 0; j < keys; ++j)
      differentiate_row<T>(block.scores[j], block.gradients[j], unit, queries, columns);
  } else {
    if (keys % 2 == 1) {
      std::fill_n(block.scores[keys], columns, -kInfinity<A>);
      std::fill_n(block.gradients[keys], columns, A(0));
    }
    for (int64_t j = 0; j < keys; j += 2)
      differentiate_pair<T, E>(
          {block.scores[j], block.scores[j + 1], block.gradients[j], block.gradients[j + 1],
           block.probabilities[j], block.probabilities[j + 1], block.score_gradients[j],
           block.score_gradients[j + 1], block.pairs + j / 2 * block.scores.stride},
          unit, queries, columns);
  }
}

/// log2 n_j of the keys `keys`, -inf for a key that is ignored.
template <typename A>
inline void log_weights(const A* weight, Block keys, A* out) {
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    const A n = weight[j];
    out[j - keys.begin] = n == 1 ? 0 : n > 0 ? std::log2(n) : -kInfinity<A>;
  }
}

}  // namespace
}  // namespace kktorch::csrc
