#include "train/experiments/primal_dual/head_distance.h"

#include "models/attention_variants.h"
#include "models/head_groups.h"
#include "ops/token_pool.h"

namespace kktorch::primal_dual {
namespace {

using torch::Tensor;

/// x^h - x^h' for all h < h' of x [B, H, ...]: [B, pairs, ...].
Tensor pair_differences(const Tensor& x) {
  const auto pairs = torch::triu_indices(x.size(1), x.size(1), /*offset=*/1);
  return x.index_select(1, pairs[0]) - x.index_select(1, pairs[1]);
}

/// bool [B, 1, L], True = not padded.
Tensor valid_queries(const HeadRecord& record) {
  const auto& o = record.outputs;
  if (record.key_padding.defined()) return record.key_padding.logical_not().unsqueeze(1);
  return torch::ones({o.size(0), 1, o.size(2)}, o.options().dtype(torch::kBool));
}

}  // namespace

HeadDistance::HeadDistance(const AttentionBNSHImpl& layer)
    : options_(layer.options), scales_(layer.scales()) {
  TORCH_CHECK(options_.num_heads >= 2 && layer.num_kv_heads() == options_.num_heads,
              "HeadDistance: expected at least two heads with keys of their own, but got ",
              options_.num_heads, " heads with keys of ", layer.num_kv_heads());
}

void HeadDistance::add(const HeadRecord& record) {
  const auto valid = valid_queries(record);
  const auto add_lengths = [&valid](const Tensor& vectors, Sum& sum) {  // [B, n, L, Dv]
    const auto lengths = vectors.norm(2, -1).masked_select(valid);
    sum.sum += lengths.sum(torch::kDouble).item<double>();
    sum.count += static_cast<double>(lengths.numel());
  };
  add_lengths(pair_differences(record.outputs), distances_);
  add_lengths(record.outputs, norms_);

  const auto padded = valid.logical_not().unsqueeze(-1);
  const auto root_queries = valid.sum(-1, /*keepdim=*/false, torch::kDouble).sqrt();  // [B, 1]
  for (const auto& [scale, heads] : detail::group_heads(scales_)) {
    const auto differences = pair_differences(window_probabilities(record, scale, heads));
    const auto distances =
        differences.masked_fill(padded, 0).norm(2, at::IntArrayRef{-2, -1}) / root_queries;
    probability_distances_.sum += distances.sum(torch::kDouble).item<double>();
    probability_distances_.count += static_cast<double>(distances.numel());
  }
}

/// [B, heads, L, windows]: the sum over the tokens that a window has spread its probability over.
Tensor HeadDistance::window_probabilities(const HeadRecord& record, int64_t scale,
                                          const std::vector<int64_t>& heads) const {
  const auto weights = detail::take_heads(record.weights, 1, heads);
  if (scale == 1) return weights;
  const auto [means, counts] =
      token_pool(weights.transpose(2, 3), scale, detail::optional(record.key_padding), "avg",
                 options_.tail, options_.num_special);
  return (means * counts.unsqueeze(1).unsqueeze(-1)).transpose(2, 3);
}

std::optional<double> HeadDistance::probabilities() const {
  if (probability_distances_.count == 0) return {};
  return probability_distances_.mean();
}

}  // namespace kktorch::primal_dual
