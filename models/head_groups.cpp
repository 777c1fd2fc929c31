#include "models/head_groups.h"

#include <algorithm>

namespace kktorch::detail {

using torch::Tensor;

std::vector<HeadGroup> group_heads(const std::vector<int64_t>& scales) {
  std::vector<HeadGroup> groups;
  for (size_t head = 0; head < scales.size(); ++head) {
    const auto same_scale = [&](const HeadGroup& group) { return group.scale == scales[head]; };
    auto group = std::find_if(groups.begin(), groups.end(), same_scale);
    if (group == groups.end()) group = groups.insert(group, {scales[head], {}});
    group->heads.push_back(static_cast<int64_t>(head));
  }
  return groups;
}

Tensor take_heads(const Tensor& t, int64_t dim, const std::vector<int64_t>& heads, int64_t rows) {
  // Slices, not index_select: an index tensor would have to be copied to the device.
  std::vector<Tensor> slices;
  bool neighbours = true;
  for (const auto head : heads) {
    neighbours = neighbours && head == heads[0] + static_cast<int64_t>(slices.size());
    slices.push_back(t.narrow(dim, head * rows, rows));
  }
  if (neighbours) return t.narrow(dim, heads[0] * rows, slices.size() * rows);
  return torch::cat(slices, dim);
}

std::vector<int64_t> head_places(const std::vector<HeadGroup>& groups) {
  std::vector<int64_t> order;
  for (const auto& group : groups) {
    order.insert(order.end(), group.heads.begin(), group.heads.end());
  }
  std::vector<int64_t> places(order.size());
  for (size_t i = 0; i < order.size(); ++i) places[order[i]] = static_cast<int64_t>(i);
  return places;
}

Tensor merge_heads(const std::vector<Tensor>& parts, const std::vector<HeadGroup>& groups,
                   int64_t rows) {
  if (parts.size() == 1) return parts[0];
  std::vector<Tensor> transposed;
  for (const auto& part : parts) transposed.push_back(part.transpose(1, 2));
  return take_heads(torch::cat(transposed, 2), 2, head_places(groups), rows).transpose(1, 2);
}

}  // namespace kktorch::detail
