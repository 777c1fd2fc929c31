#pragma once
// Groups of heads of one scale, the unit in which Attention-SH is computed: take the heads of a
// group out, attend once per group, put the results back.
#include <torch/torch.h>

#include <vector>

namespace kktorch::detail {

struct HeadGroup {
  int64_t scale;
  std::vector<int64_t> heads;  ///< key heads, ascending
};

/// One group per distinct scale, in the order of first appearance.
std::vector<HeadGroup> group_heads(const std::vector<int64_t>& scales);

/// Heads `heads` of dimension `dim`, where every head is `rows` neighbours. A view if the heads are
/// neighbours, too.
torch::Tensor take_heads(const torch::Tensor& t, int64_t dim, const std::vector<int64_t>& heads,
                         int64_t rows = 1);

/// Place of every head where the groups follow one another.
std::vector<int64_t> head_places(const std::vector<HeadGroup>& groups);

/// The inverse of take_heads for dimension 1 of every group's [B, heads, L, width], in the order of
/// the groups; stored (B, L, heads, width).
torch::Tensor merge_heads(const std::vector<torch::Tensor>& parts,
                          const std::vector<HeadGroup>& groups, int64_t rows);

}  // namespace kktorch::detail
