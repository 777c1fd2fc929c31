#pragma once
// Backward: for a block of keys, whose operands and gradients stay in L2, every block of queries is
// packed once. With scores transposed, [keys, queries], P and dS are operands as they come:
//
//     S^T = c q^^T,   dP^T = v do^T,   P = 2^(S - lse),   dS = P o (dP - delta)
//     dv += P^T do,   dc += dS^T q^,   dq^ += (dS^T)^T c
#include "csrc/attention/core/scratch.h"
#include "csrc/attention/core/softmax.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kBackwardTile = 96;      // keys whose scores exist at a time
constexpr int64_t kBackwardQueries = 128;  // queries of a block
static_assert(kBackwardTile % kRowStep == 0 && kRowStep % 2 == 0, "pairs of keys are not torn");

/// Keys of a block, whole tiles: operands, gradients and the query block fill an L2 cache.
inline int64_t backward_keys(int64_t width) {
  return std::clamp<int64_t>(30720 / width / kBackwardTile, 1, 5) * kBackwardTile;
}

template <typename T, typename E = Arithmetic<T>>
class BackwardPass {
  using A = acc_t<T>;
  using Word = typename E::Word;

 public:
  BackwardPass(const CoreProblem<T>& problem, void* base)
      : p_(problem),
        block_keys_(backward_keys(std::max(p_.D, p_.Dv))),
        scaled_(scores_are_scaled(p_)) {
    Scratch scratch(base);
    const int64_t keys = std::min(p_.N, block_keys_);
    take_key_block(scratch, keys);
    take_query_block(scratch, kBackwardQueries);
    take_tile(scratch, std::min(keys, kBackwardTile), kBackwardQueries);
    size_ = scratch.used();
  }

  int64_t scratch_size() const { return size_; }

  void run(const CoreGradients<T>& gradients, int64_t b, int64_t hk, Block keys, A* grad_query,
           A* grad_key) {
    b_ = b, hk_ = hk;
    std::fill_n(grad_query, p_.group() * p_.M * p_.D, A(0));
    const int64_t step = even_blocks(keys.end - keys.begin, block_keys_, kBackwardTile);
    for (int64_t j = keys.begin; j < keys.end; j += step)
      key_block(gradients, {j, std::min(j + step, keys.end)}, grad_query, grad_key);
  }

 private:
  PackedRows<E> take_rows(Scratch& scratch, int64_t count, int64_t width) {
    const int64_t stride = padded<A>(words<E>(width));
    return {scratch.take<Word>(padded_rows<A>(count) * stride), stride};
  }
  Sums<A> take_sums(Scratch& scratch, int64_t rows, int64_t width) {
    return {scratch.take<A>(rows * padded<A>(width)), padded<A>(width)};
  }
  /// For what `transposed` and `upright` return.
  Word* take_columns(Scratch& scratch, int64_t count, const PackedRows<E>& rows) {
    return scratch.take<Word>(round_up(count, kPanel<A>) * rows.stride);
  }
  Word* take_joined(Scratch& scratch, int64_t count, int64_t width) {
    if (E::kGroup == 1) return nullptr;
    return scratch.take<Word>(padded_rows<A>(count) / 2 * padded<A>(width));
  }

  void take_key_block(Scratch& scratch, int64_t keys) {
    keys_ = take_rows(scratch, keys, p_.D);
    values_ = take_rows(scratch, keys, p_.Dv);
    joined_keys_ = take_joined(scratch, keys, p_.D);
    grad_key_ = take_sums(scratch, keys, p_.D);
    grad_value_ = take_sums(scratch, keys, p_.Dv);
    log_weight_ = scratch.take<A>(keys);
  }
  void take_query_block(Scratch& scratch, int64_t queries) {
    queries_ = take_rows(scratch, queries, p_.D);
    grads_ = take_rows(scratch, queries, p_.Dv);
    outs_ = take_rows(scratch, queries, p_.Dv);
    query_columns_ = take_columns(scratch, queries, queries_);
    grad_columns_ = take_columns(scratch, queries, grads_);
    out_columns_ = take_columns(scratch, queries, outs_);
    joined_queries_ = take_joined(scratch, queries, p_.D);
    joined_grads_ = take_joined(scratch, queries, p_.Dv);
    grad_query_ = take_sums(scratch, queries, p_.D);
    rows_ = {scratch.take<A>(queries), scratch.take<A>(queries), scratch.take<A>(queries)};
  }
  void take_tile(Scratch& scratch, int64_t keys, int64_t queries) {
    tile_.scores = take_sums(scratch, keys + keys % 2, queries);
    tile_.gradients = take_sums(scratch, keys + keys % 2, queries);
    if (E::kGroup == 1) return;
    tile_.probabilities = take_rows(scratch, keys, queries);
    tile_.score_gradients = take_rows(scratch, keys, queries);
    tile_.pairs = take_joined(scratch, keys, queries);
  }

  void key_block(const CoreGradients<T>& gradients, Block keys, A* grad_query, A* grad_key) {
    const int64_t count = keys.end - keys.begin;
    pack_keys<T, E>(p_, b_, hk_, keys, keys_);
    pack_values<T, E>(p_, b_, hk_, keys, values_);
    if (p_.weight) log_weights(p_.weight_of(b_), keys, log_weight_);
    key_rows_ = upright(keys_, count, p_.D, joined_keys_);
    std::fill_n(grad_key_.data, count * grad_key_.stride, A(0));
    std::fill_n(grad_value_.data, count * grad_value_.stride, A(0));
    // Queries before the first key of the block do not see it.
    const int64_t first = p_.is_causal ? std::max<int64_t>(0, keys.begin - p_.query_offset) : 0;
    for (int64_t g = 0; g < p_.group(); ++g)
      for (int64_t i = first; i < p_.M; i += kBackwardQueries)
        query_block(gradients, g, {i, std::min(i + kBackwardQueries, p_.M)}, keys,
                    grad_query + g * p_.M * p_.D);
    for (int64_t j = 0; j < count; ++j) {
      std::copy_n(grad_key_[j], p_.D, grad_key + (keys.begin + j) * p_.D);
      finish_value(gradients, keys.begin + j, grad_value_[j]);
    }
  }

  void finish_value(const CoreGradients<T>& gradients, int64_t j, const A* sums) {
    T* out = gradients.value.of(b_, hk_)[j];
    const A* weight = p_.weight_of(b_);
    if (weight && !(weight[j] > 0)) {
      std::fill_n(out, p_.Dv, T(0));
    } else {
      for_each_part<A>(p_.Dv, [&](int64_t e, auto count) {
        store_row_part(out + e, load<Vector<A>>(sums + e), count);  // padded
      });
    }
  }

  void query_block(const CoreGradients<T>& gradients, int64_t g, Block queries, Block keys,
                   A* grad_query) {
    h_ = hk_ * p_.group() + g;
    const int64_t count = queries.end - queries.begin;
    const auto operands = pack(gradients, queries);
    std::fill_n(grad_query_.data, count * grad_query_.stride, A(0));
    // Keys behind the last query of the block are not seen by it.
    const int64_t end = p_.is_causal ? std::min(keys.end, p_.query_offset + queries.end) : keys.end;
    const int64_t step = even_blocks(end - keys.begin, kBackwardTile, kRowStep);
    for (int64_t j = keys.begin; j < end; j += step)
      tile(queries, {j, std::min(j + step, end)}, j - keys.begin, operands);
    for (int64_t i = 0; i < count; ++i) {
      A* __restrict out = grad_query + (queries.begin + i) * p_.D;
      const A* __restrict sums = grad_query_[i];
      for (int64_t d = 0; d < p_.D; ++d) out[d] += sums[d];
    }
  }

  struct QueryOperands {
    Right<Word> query_columns, grad_columns, query_rows, grad_rows;
  };

  QueryOperands pack(const CoreGradients<T>& gradients, Block queries) {
    const int64_t count = queries.end - queries.begin;
    pack_queries<T, E>(p_, b_, h_, queries, queries_);
    const auto logsumexp = gradients.logsumexp.of(b_, h_);
    for (int64_t i = 0; i < count; ++i) rows_.set_logsumexp(i, *logsumexp[queries.begin + i]);
    for (int64_t i = count; i < padded<A>(count); ++i) rows_.set_logsumexp(i, -kInfinity<A>);
    pack_outputs(gradients.out, queries, outs_);
    pack_outputs(gradients.grad_out, queries, grads_);
    const auto grad_columns = transposed(grads_, count, grad_columns_);
    set_delta(transposed(outs_, count, out_columns_), grad_columns, count);
    return {transposed(queries_, count, query_columns_), grad_columns,
            upright(queries_, count, p_.D, joined_queries_),
            upright(grads_, count, p_.Dv, joined_grads_)};
  }

  void pack_outputs(const HeadRows<const T>& from, Block queries, const PackedRows<E>& to) {
    const auto rows = from.of(b_, h_);
    for (int64_t i = queries.begin; i < queries.end; ++i) {
      prefetch_behind(rows, i, p_.Dv);
      pack_row<T, E>(rows[i], p_.Dv, Identity{}, to, i - queries.begin);
    }
    const int64_t count = queries.end - queries.begin;
    clear_rows(to, count, padded_rows<A>(count));
  }

  /// delta is summed in the order in which dP is summed: where all of P falls on one
  /// key, o = v, and dP - delta must be exactly 0, because large operands may follow.
  void set_delta(Right<Word> out, Right<Word> grad, int64_t count) const {
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      const int64_t at = i / kPanel<A> * out.panel_stride + i % kPanel<A>;
      store(rows_.delta + i, column_products<E>(out.data + at, out.stride, grad.data + at,
                                                grad.stride, words<E>(p_.Dv)));
    }
  }

  /// The keys `keys`, which begin at row `at` of the block.
  void tile(Block queries, Block keys, int64_t at, const QueryOperands& operands) {
    const int64_t rows = keys.end - keys.begin, count = queries.end - queries.begin;
    multiply<E>(rows, count, words<E>(p_.D), keys_.from(at), operands.query_columns, tile_.scores,
                false);
    multiply<E>(rows, count, words<E>(p_.Dv), values_.from(at), operands.grad_columns,
                tile_.gradients, false);
    hide(queries, keys, at);
    differentiate_scores<T>(tile_, rows_, scaled_ ? 1 : unit_of(p_.scale), rows, padded<A>(count));
    Left<Word> p{tile_.scores.data, tile_.scores.stride},
        ds{tile_.gradients.data, tile_.scores.stride};
    auto ds_by_key = ds;
    if constexpr (E::kGroup > 1) {
      p = tile_.probabilities.from(0), ds = tile_.score_gradients.from(0);
      ds_by_key = {tile_.pairs, tile_.scores.stride};
    }
    const int64_t depth = words<E>(count);
    multiply<E>(rows, p_.Dv, depth, p, operands.grad_rows, {grad_value_[at], grad_value_.stride},
                true);
    multiply<E>(rows, p_.D, depth, ds, operands.query_rows, {grad_key_[at], grad_key_.stride},
                true);
    // Tiles begin at even rows of the block.
    const Right<Word> c{key_rows_.data + at / E::kGroup * key_rows_.stride, key_rows_.stride,
                        key_rows_.panel_stride};
    multiply<E, true>(count, p_.D, words<E>(rows), ds_by_key, c, grad_query_, true);
  }

  /// Weights and masks of the transposed scores.
  void hide(Block queries, Block keys, int64_t at) {
    const int64_t count = queries.end - queries.begin;
    const auto& mask = p_.mask;
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      A* __restrict scores = tile_.scores[j - keys.begin];
      if (scaled_)
        for (int64_t i = 0; i < count; ++i) scores[i] *= unit_of(p_.scale);
      const A weight = p_.weight ? log_weight_[at + j - keys.begin] : 0;
      if (weight != 0)
        for (int64_t i = 0; i < count; ++i) scores[i] += weight;
      const int64_t offset =
          b_ * mask.batch_stride + h_ * mask.head_stride + queries.begin * mask.row_stride + j;
      if (mask.visible)
        for (int64_t i = 0; i < count; ++i)
          scores[i] = mask.visible[offset + i * mask.row_stride] ? scores[i] : -kInfinity<A>;
      if (mask.bias)
        for (int64_t i = 0; i < count; ++i)
          scores[i] += mask.bias[offset + i * mask.row_stride] * static_cast<A>(kLog2E);
      if (p_.is_causal)  // the first queries of the block may come before key j
        std::fill_n(scores, std::clamp<int64_t>(j - p_.query_offset - queries.begin, 0, count),
                    -kInfinity<A>);
    }
  }

  const CoreProblem<T>& p_;
  int64_t block_keys_;
  bool scaled_;  // as in forward
  int64_t b_ = 0, hk_ = 0, h_ = 0, size_;
  PackedRows<E> keys_, values_, queries_, grads_, outs_;
  Word *joined_keys_, *query_columns_, *grad_columns_, *out_columns_, *joined_queries_,
      *joined_grads_;
  Right<Word> key_rows_{};
  Sums<A> grad_key_, grad_value_, grad_query_;
  ScoreBlock<E> tile_{};
  QueryRows<A> rows_;
  A* log_weight_;
};

/// dq = r dq^ and the column sums over the block of dq^ and dq^ q^.
template <typename T, typename A = acc_t<T>>
void finish_queries(const CoreProblem<T>& p, const CoreGradients<T>& gradients, int64_t b,
                    int64_t h, Block queries, const A* summands, int64_t parts, int64_t stride,
                    QuerySums<A> sums) {
  using V = Vector<A>;
  const auto s = p.statistics_of(b, h / p.group());
  const QueryMap<A> map{s, p.beta[h], 1};
  std::fill_n(sums.shift, p.D, A(0));
  std::fill_n(sums.scale, p.D, A(0));
  const auto query = p.query.of(b, h);
  const auto out = gradients.query.of(b, h);
  for (int64_t i = queries.begin; i < queries.end; ++i, summands += p.D)
    for_each_part<A>(p.D, [&](int64_t d, auto count) {
      V g = load_row_part(summands + d, count) * p.scale;
      for (int64_t part = 1; part < parts; ++part)
        g += load_row_part(summands + part * stride + d, count) * p.scale;
      const V q_hat = map(d, load_row_part(query[i] + d, count), count);
      store_row_part(sums.shift + d, load_row_part(sums.shift + d, count) + g, count);
      store_row_part(sums.scale + d, load_row_part(sums.scale + d, count) + g * q_hat, count);
      store_row_part(out[i] + d, load_row_part(s.rstd + d, count) * g, count);
    });
}

/// dk from the gradient of c.
template <typename T, typename A = acc_t<T>>
void finish_keys(const CoreProblem<T>& p, const CoreGradients<T>& gradients, int64_t b, int64_t hk,
                 Block keys, const A* grad_key, A total_weight, QuerySums<A> sums) {
  const auto s = p.statistics_of(b, hk);
  const KeyMap<A> map{s};
  const A* weight = p.weight_of(b);
  const A size = std::abs(p.scale);  // its sign is in the packed queries
  const auto key = p.key.of(b, hk);
  const auto out = gradients.key.of(b, hk);
  for (int64_t j = keys.begin; j < keys.end; ++j, grad_key += p.D) {
    const A n = weight ? weight[j] : 1;
    if (!(n > 0)) {
      std::fill_n(out[j], p.D, T(0));
      continue;
    }
    for_each_part<A>(p.D, [&](int64_t d, auto count) {
      const auto at = [&](const A* row) { return load_row_part(row + d, count); };
      store_row_part(
          out[j] + d,
          key_gradient(at(grad_key) * size, at(s.rstd), broadcast(n / total_weight), at(sums.shift),
                       at(sums.scale), map(d, load_row_part(key[j] + d, count), count)),
          count);
    });
  }
}

}  // namespace
}  // namespace kktorch::csrc
