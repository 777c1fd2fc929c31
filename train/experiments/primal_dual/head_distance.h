#pragma once
// How far the heads of an attention layer are apart, over the valid tokens i of the samples b:
//
//     R = mean_{b,i,h<h'} |o_i^h - o_i^h'|        relative: R / mean_{b,i,h} |o_i^h|
//     mean_{b,h<h'} |P^h - P^h'|_F / sqrt(M_b)    over heads of one scale
//
// with the heads' outputs o before the output projection, M_b valid tokens in sample b, and the
// probabilities P [M_b, windows], which have a common shape only where the scales are equal.
#include <optional>

#include "models/attention_bnsh.h"

namespace kktorch::primal_dual {

class HeadDistance {
 public:
  /// @param layer  of at least two heads, a key head each.
  explicit HeadDistance(const AttentionBNSHImpl& layer);

  /// Adds the samples of a pass of self-attention, in which padded keys are padded queries, too.
  void add(const HeadRecord& record);

  double outputs() const { return distances_.mean(); }
  double relative() const { return distances_.mean() / norms_.mean(); }
  /// Nothing if no two heads have a scale in common.
  std::optional<double> probabilities() const;

 private:
  struct Sum {
    double sum = 0, count = 0;
    double mean() const { return sum / count; }
  };
  torch::Tensor window_probabilities(const HeadRecord& record, int64_t scale,
                                     const std::vector<int64_t>& heads) const;

  AttentionBNSHOptions options_;
  std::vector<int64_t> scales_;
  Sum distances_, norms_, probability_distances_;
};

}  // namespace kktorch::primal_dual
