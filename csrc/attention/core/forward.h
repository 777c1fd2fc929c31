#pragma once
// Forward: for a chunk of queries, whose sums stay in L2, every block of keys is packed once; tiles
// of queries then take it into an online softmax. Sums over parts of the keys are joined likewise:
// with the largest score m_p of a row in part p and m = max m_p,
//
//     sum = sum_p 2^(m_p - m) sum_p,    out = sum_p 2^(m_p - m) out_p / sum
#include "csrc/attention/core/scratch.h"
#include "csrc/attention/core/softmax.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kForwardTile = 48;      // queries whose scores exist at a time
constexpr int64_t kForwardQueries = 480;  // queries of a chunk
constexpr int64_t kKeyStep = 64;          // blocks of keys are multiples
static_assert(kForwardTile % kLanes<float> == 0, "tiles of rows are whole vectors");

/// Keys of a block: with their values, packed, half an L2 cache.
inline int64_t forward_keys(int64_t width) {
  return std::clamp<int64_t>(32768 / width / kKeyStep * kKeyStep, 128, 512);
}

template <typename T, typename E = Arithmetic<T>>
class ForwardPass {
  using A = acc_t<T>;
  using Word = typename E::Word;

 public:
  ForwardPass(const CoreProblem<T>& problem, void* base)
      : p_(problem),
        block_keys_(forward_keys(std::max(p_.D, p_.Dv))),
        scaled_(scores_are_scaled(p_)),
        hides_(scaled_ || p_.mask.visible || p_.is_causal),
        unit_(scaled_ ? 1 : unit_of(p_.scale)) {
    Scratch scratch(base);
    const auto rows = [&](int64_t count, int64_t width) {
      const int64_t stride = padded<A>(words<E>(width));
      return PackedRows<E>{scratch.take<Word>(padded_rows<A>(count) * stride), stride};
    };
    const int64_t queries = std::min(p_.M, kForwardQueries), keys = std::min(p_.N, block_keys_);
    queries_ = rows(queries, p_.D);
    keys_ = rows(keys, p_.D);
    values_ = rows(keys, p_.Dv);
    columns_ = scratch.take<Word>(round_up(keys, kPanel<A>) * keys_.stride);
    if (E::kGroup > 1) joined_ = scratch.take<Word>(padded_rows<A>(keys) * padded<A>(p_.Dv));
    scores_.stride = score_columns<E>(keys);
    scores_.data = scratch.take<A>(kForwardTile * scores_.stride);
    if (E::kGroup > 1) probabilities_ = rows(kForwardTile, scores_.stride);
    out_.stride = padded<A>(p_.Dv);
    out_.data = scratch.take<A>(queries * out_.stride);
    for (A** row :
         {&rows_.max, &rows_.sum, &rows_.block_max, &rows_.block_sum, &rows_.origin, &rows_.factor})
      *row = scratch.take<A>(round_up(queries, kLanes<A>));
    log_weight_ = scratch.take<A>(keys);
    size_ = scratch.used();
  }

  int64_t scratch_size() const { return size_; }

  void run(const CoreResult<T>& result, int64_t b, int64_t h, Block queries) {
    for_each_row(b, h, queries, {0, p_.N},
                 [&](int64_t i, int64_t row) { finish_row(result, i, row); });
  }

  /// sums: [rows, Dv + 2], the sums of the row over v and of its probabilities, its largest score.
  void run_part(int64_t b, int64_t h, Block queries, Block keys, A* sums) {
    const int64_t Dv = p_.Dv;
    for_each_row(b, h, queries, keys, [&](int64_t i, int64_t row) {
      A* to = sums + (i - queries.begin) * (Dv + 2);
      if (rows_.sum[row] == 0)  // the row saw no key: its sums were never begun
        std::fill_n(to, Dv, A(0));
      else
        std::copy_n(out_[row], Dv, to);
      to[Dv] = rows_.sum[row], to[Dv + 1] = rows_.max[row];
    });
  }

  /// sums: [parts, rows, Dv + 2], as run_part leaves them.
  void join(const CoreResult<T>& result, int64_t b, int64_t h, Block queries, const A* sums,
            int64_t parts) {
    b_ = b, h_ = h;
    const int64_t Dv = p_.Dv, stride = (queries.end - queries.begin) * (Dv + 2);
    for (int64_t i = queries.begin; i < queries.end; ++i, sums += Dv + 2) {
      A &max = rows_.max[0] = -kInfinity<A>, &sum = rows_.sum[0] = 0;
      for (int64_t k = 0; k < parts; ++k) max = std::max(max, sums[k * stride + Dv + 1]);
      std::fill_n(out_[0], Dv, A(0));
      for (int64_t k = 0; k < parts; ++k) {
        const A* __restrict part = sums + k * stride;
        if (part[Dv] == 0) continue;
        const A factor = std::exp2((part[Dv + 1] - max) * unit_);
        A* __restrict out = out_[0];
        for (int64_t e = 0; e < Dv; ++e) out[e] += factor * part[e];
        sum += factor * part[Dv];
      }
      finish_row(result, i, 0);
    }
  }

 private:
  /// finish(i, row) for every query i, the row `row` of the sums over `keys`.
  template <typename Finish>
  void for_each_row(int64_t b, int64_t h, Block queries, Block keys, const Finish& finish) {
    b_ = b, h_ = h, first_key_ = keys.begin;
    for (int64_t i = queries.begin; i < queries.end; i += kForwardQueries) {
      const Block chunk{i, std::min(i + kForwardQueries, queries.end)};
      attend(chunk, keys);
      for (int64_t row = 0; row < chunk.end - i; ++row) finish(i + row, row);
    }
  }

  void attend(Block queries, Block all) {
    const int64_t count = queries.end - queries.begin;
    pack_queries<T, E>(p_, b_, h_, queries, queries_);
    rows_.begin(count);
    const int64_t end = std::min(all.end, visible_keys(queries.end - 1));
    const int64_t step = even_blocks(all.end - all.begin, block_keys_, kKeyStep);  // for all chunks
    for (int64_t j = all.begin; j < end; j += step) {
      const Block keys{j, std::min(j + step, end)};
      const auto [columns, values] = pack(keys);
      for (int64_t i = 0; i < count; i += kForwardTile) {
        const int64_t rows = std::min(kForwardTile, count - i);
        const int64_t visible = std::min(keys.end, visible_keys(queries.begin + i + rows - 1));
        if (visible > keys.begin)
          tile(queries.begin, i, rows, {keys.begin, visible}, columns, values);
      }
    }
  }

  /// The keys that query i may see are the first of all.
  int64_t visible_keys(int64_t i) const {
    return p_.is_causal ? std::min(p_.N, p_.query_offset + i + 1) : p_.N;
  }

  std::pair<Right<Word>, Right<Word>> pack(Block keys) {
    const int64_t hk = h_ / p_.group(), count = keys.end - keys.begin;
    pack_keys<T, E>(p_, b_, hk, keys, keys_);
    pack_values<T, E>(p_, b_, hk, keys, values_);
    if (p_.weight) log_weights(p_.weight_of(b_), keys, log_weight_);
    return {transposed(keys_, count, columns_), upright(values_, count, p_.Dv, joined_)};
  }

  /// Rows [i, i + rows) of the chunk, which begins at `first`, and the keys `keys` of the block.
  void tile(int64_t first, int64_t i, int64_t rows, Block keys, Right<Word> columns,
            Right<Word> values) {
    const int64_t count = keys.end - keys.begin;
    multiply<E>(rows, count, words<E>(p_.D), queries_.from(i), columns, scores_, false);
    const int64_t whole = score_columns<E>(count);
    for (int64_t row = 0; row < rows; ++row) {
      A* scores = scores_[row];
      std::fill(scores + count, scores + whole, -kInfinity<A>);
      if (hides_) hide(scores, first + i + row, keys);
      rows_.block_max[i + row] = row_max(scores, whole);
    }
    rows_.template raise_max<T>(i, rows, unit_);
    for (int64_t row = 0; row < rows; ++row)
      rows_.block_sum[i + row] = exponentiate_row<T>(scores_[row], whole, unit_,
                                                     rows_.origin[i + row], probabilities_[row]);
    rows_.add_sums(i, rows);
    const bool begun = keys.begin > first_key_;
    if (begun) rescale(i, rows);
    multiply<E>(rows, p_.Dv, words<E>(count), probability_operand(), values, {out_[i], out_.stride},
                begun);
  }

  Left<Word> probability_operand() const {
    if constexpr (E::kGroup == 1)
      return {scores_.data, scores_.stride};
    else
      return probabilities_.from(0);
  }

  /// Weights and masks of the scores of query i with the keys `keys`.
  void hide(A* __restrict scores, int64_t i, Block keys) const {
    const int64_t count = keys.end - keys.begin;
    if (scaled_)
      for (int64_t j = 0; j < count; ++j) scores[j] *= unit_of(p_.scale);
    if (p_.weight)
      for (int64_t j = 0; j < count; ++j) scores[j] += log_weight_[j];
    const int64_t at =
        b_ * p_.mask.batch_stride + h_ * p_.mask.head_stride + i * p_.mask.row_stride + keys.begin;
    if (p_.mask.visible)
      for (int64_t j = 0; j < count; ++j)
        scores[j] = p_.mask.visible[at + j] ? scores[j] : -kInfinity<A>;
    if (p_.mask.bias)
      for (int64_t j = 0; j < count; ++j)
        scores[j] += p_.mask.bias[at + j] * static_cast<A>(kLog2E);
    const int64_t visible = std::clamp<int64_t>(visible_keys(i) - keys.begin, 0, count);
    std::fill(scores + visible, scores + count, -kInfinity<A>);
  }

  /// The sums of earlier blocks, where the maximum has moved.
  void rescale(int64_t i, int64_t rows) {
    for (int64_t row = i; row < i + rows; ++row) {
      const A factor = rows_.factor[row];
      if (factor == 1) continue;
      for (int64_t e = 0; e < out_.stride; ++e) out_[row][e] *= factor;
    }
  }

  void finish_row(const CoreResult<T>& result, int64_t i, int64_t row) {
    const A max = rows_.max[row], sum = rows_.sum[row];
    const A* sums = out_[row];
    const A norm = sum == 0 ? 0 : 1 / sum;
    T* out = result.out.of(b_, h_)[i];
    for_each_part<A>(p_.Dv, [&](int64_t e, auto count) {
      const auto v = load<Vector<A>>(sums + e);  // padded
      store_row_part(out + e, norm == 0 ? Vector<A>{} : v * norm, count);
    });
    *result.logsumexp.of(b_, h_)[i] =
        sum == 0
            ? -kInfinity<A>
            : static_cast<A>(
                  (static_cast<double>(max) * unit_ + std::log2(static_cast<double>(sum))) * kLn2);
  }

  const CoreProblem<T>& p_;
  int64_t block_keys_;
  bool scaled_;  // scores are multiplied by their unit before weights and masks are added
  bool hides_;   // some scores are weighted or masked
  A unit_;
  int64_t b_ = 0, h_ = 0, first_key_ = 0, size_;
  PackedRows<E> queries_{}, keys_{}, values_{}, probabilities_{};
  Word *columns_, *joined_ = nullptr;
  Sums<A> scores_{}, out_{};
  OnlineRows<A> rows_;
  A* log_weight_;
};

}  // namespace
}  // namespace kktorch::csrc
