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

template <typename A>
inline A row_max(const A* scores, int64_t columns) {
  using V = Vector<A>;
  V max = broadcast(-kInfinity<A>);
  for (int64_t j = 0; j < columns; j += kLanes<A>) max = larger(load<V>(scores + j), max);
  return reduce_max<A>(max);
}

/// Turns a row of scores into 2^(score - origin), over the scores or, narrower, beside them;
/// returns the sum.
template <typename T, typename E = Arithmetic<T>>
inline acc_t<T> exponentiate_row(acc_t<T>* scores, int64_t columns, acc_t<T> origin,
                                 typename E::Element* probabilities) {
  using A = acc_t<T>;
  using V = Vector<A>;
  V sum{};
  for (int64_t j = 0; j < columns; j += kLanes<A>) {
    const V p = exp2_for<T>(load<V>(scores + j) - origin);
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
  void raise_max(int64_t first, int64_t rows) const {
    using V = Vector<A>;
    for (int64_t i = first; i < first + rows; i += kLanes<A>) {
      const V before = load<V>(max + i), now = larger(load<V>(block_max + i), before);
      store(max + i, now);
      store(origin + i, now == -kInfinity<A> ? V{} : now);
      store(factor + i, now == before ? V{} + 1 : exp2_for<T>(before - now));
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
/// probabilities are 0) and delta = sum_e do_e o_e.
template <typename A>
struct QueryRows {
  A *logsumexp, *delta;
};

/// Scores and dP of a block, by key: [keys, queries].
template <typename E>
struct ScoreBlock {
  Sums<typename E::Acc> scores, gradients;
  PackedRows<E> probabilities, score_gradients;  // where elements are narrower than accumulators
  typename E::Word* pairs;                       // of score_gradients: two keys, one query
};

template <typename T, typename E>
struct ScorePair {
  Vector<acc_t<T>> p, ds;

  ScorePair(const ScoreBlock<E>& block, const QueryRows<acc_t<T>>& queries, int64_t j, int64_t i) {
    using V = Vector<acc_t<T>>;
    p = exp2_for<T>(load<V>(block.scores[j] + i) - load<V>(queries.logsumexp + i));
    ds = p * (load<V>(block.gradients[j] + i) - load<V>(queries.delta + i));
  }
};

/// P and dS = P o (dP - delta), up to scale, as operands: over the scores and dP, or beside them.
template <typename T, typename E = Arithmetic<T>>
inline void differentiate_scores(const ScoreBlock<E>& block, const QueryRows<acc_t<T>>& queries,
                                 int64_t keys, int64_t columns) {
  using A = acc_t<T>;
  if constexpr (E::kGroup == 1) {
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t i = 0; i < columns; i += kLanes<A>) {
        const ScorePair<T, E> s(block, queries, j, i);
        store(block.scores[j] + i, s.p);
        store(block.gradients[j] + i, s.ds);
      }
  } else {
    for (int64_t j = 0; j < keys; j += 2)
      for (int64_t i = 0; i < columns; i += kLanes<A>) {
        const ScorePair<T, E> first(block, queries, j, i);
        E::round(block.probabilities[j] + i, first.p);
        Vector<A> second_ds{};
        if (j + 1 < keys) {
          const ScorePair<T, E> second(block, queries, j + 1, i);
          E::round(block.probabilities[j + 1] + i, second.p);
          second_ds = second.ds;
        }
        E::round_two(first.ds, second_ds, block.score_gradients[j] + i,
                     block.score_gradients[j + 1] + i,
                     block.pairs + j / 2 * block.scores.stride + i);
      }
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
