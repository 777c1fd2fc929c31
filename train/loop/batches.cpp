#include "train/loop/batches.h"

#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "train/loop/seed_stream.h"

namespace kktorch {
namespace {

at::Tensor ascending(std::vector<int64_t> rows) {
  std::sort(rows.begin(), rows.end());
  return at::tensor(rows, at::kLong);
}

/// The examples whose parts are `change` of these; what is undefined stays so.
template <typename Change>
Examples of_each(const Examples& all, const Change& change) {
  const auto part = [&](const at::Tensor& tensor) {
    return tensor.defined() ? change(tensor) : at::Tensor();
  };
  return {part(all.inputs), part(all.padding_mask), part(all.labels)};
}

}  // namespace

Examples Examples::select(const at::Tensor& rows) const {
  return of_each(*this, [&](const at::Tensor& part) { return part.index_select(0, rows); });
}

Examples Examples::narrow(int64_t begin, int64_t count) const {
  return of_each(*this, [&](const at::Tensor& part) { return part.narrow(0, begin, count); });
}

Split stratified_split(const at::Tensor& labels, double fraction, uint64_t seed) {
  std::map<int64_t, std::vector<int64_t>> rows_of_class;
  for (int64_t row = 0; row < labels.size(0); ++row)
    rows_of_class[labels[row].item<int64_t>()].push_back(row);
  std::vector<int64_t> rest, held_out;
  for (const auto& [label, rows] : rows_of_class) {
    const auto count = static_cast<int64_t>(rows.size());
    const auto held = std::lround(fraction * static_cast<double>(count));
    const auto order =
        SeedStream(seed, "validation split", static_cast<uint64_t>(label)).permutation(count);
    for (int64_t i = 0; i < count; ++i)
      (i < held ? held_out : rest)
          .push_back(rows[static_cast<size_t>(order[static_cast<size_t>(i)])]);
  }
  return {ascending(std::move(rest)), ascending(std::move(held_out))};
}

std::vector<at::Tensor> shuffled_batches(int64_t n, int64_t batch_size, uint64_t seed,
                                         int64_t epoch) {
  const auto order = SeedStream(seed, "batches", static_cast<uint64_t>(epoch)).permutation(n);
  return at::tensor(order, at::kLong).split(batch_size);
}

}  // namespace kktorch
