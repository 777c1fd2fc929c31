#pragma once
// Data of the theory experiments: random tokens, queries, labels and heads, drawn in the order of
// the published code from one generator, float32, then normalised to unit length.
#include <cstdint>
#include <vector>

#include "csrc/svm/attention_model.h"

namespace kktorch::attention_svm {

/// n inputs of T tokens of width d with a query each.
struct Problem {
  int64_t n = 0, T = 0, d = 0;
  /// [n T d], [n d], [n], [d] or, of the head relu, [d d]
  std::vector<double> x = {}, z = {}, labels = {}, v = {};
  csrc::AttentionHead head = csrc::AttentionHead::kLinear;
  csrc::MarginLoss loss = csrc::MarginLoss::kLogistic;
  std::vector<int64_t> row_ptr = {};

  /// A view: the problem must outlive it.
  csrc::AttentionModel model() const;
  csrc::TokenSetsView<double> sets() const { return model().sets; }
  const double* token(int64_t i, int64_t t) const { return x.data() + (i * T + t) * d; }
  /// Position of the largest score Y_i v.x_it of every input (linear head); ties: the first.
  std::vector<int64_t> optimal() const;
};

/// 0, T, 2 T, ..., n T.
std::vector<int64_t> regular_row_ptr(int64_t n, int64_t T);

/// Linear head: v, Y, X, Z in this order; tokens, queries and v have norm 1. Y is the sign of a
/// normal number.
Problem draw_linear(uint64_t seed, int64_t n, int64_t T, int64_t d);

/// Head relu: V, X, Y, Z in this order; V has Frobenius norm 1.
Problem draw_relu(uint64_t seed, int64_t n, int64_t T, int64_t d);

/// Uniform numbers in +-1/sqrt(d): a generator of its own, seeded seed + 1000000.
std::vector<double> draw_weights(uint64_t seed, int64_t count, int64_t d);

/// Normal numbers times `scale`, float32, from the generator of `seed`.
std::vector<double> draw_normal(uint64_t seed, const std::vector<int64_t>& shape, double scale);

}  // namespace kktorch::attention_svm
