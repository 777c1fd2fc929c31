#include "train/cli/svm_data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/torch.h>

#include <algorithm>

#include "train/common/error.h"
#include "train/data/array_file.h"

namespace kktorch::cli {
namespace {

using at::Tensor;

/// Position of the largest value [nnz] in every set; ties: the first.
Tensor argmax_of_sets(const TokenSets& sets, const Tensor& values) {
  const auto row_ptr = sets.row_ptr.contiguous(), flat = values.contiguous();
  const int64_t* begin = row_ptr.const_data_ptr<int64_t>();
  const double* value = flat.const_data_ptr<double>();
  auto alpha = at::zeros({row_ptr.size(0) - 1}, at::kLong);
  for (int64_t q = 0; q < alpha.size(0); ++q)
    alpha.mutable_data_ptr<int64_t>()[q] =
        std::max_element(value + begin[q], value + begin[q + 1]) - (value + begin[q]);
  return alpha;
}

}  // namespace

SvmData::SvmData(const std::filesystem::path& file)
    : file_(file.string()), arrays_(read_arrays(file)) {}

Tensor SvmData::get(const std::string& name, const std::vector<int64_t>& sizes,
                    const std::string& shape) const {
  const auto found = arrays_.find(name);
  if (found == arrays_.end()) {
    std::string names;
    for (const auto& [known, array] : arrays_) names += (names.empty() ? "" : ", ") + known;
    fail("{}: expected an array {} {}, but got {}", file_, name, shape,
         names.empty() ? "no array" : names);
  }
  const auto& array = found->second;
  bool matches = array.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; matches && i < sizes.size(); ++i)
    matches = sizes[i] < 0 || array.size(static_cast<int64_t>(i)) == sizes[i];
  if (!matches)
    fail("{}: expected {} of shape {}, but got [{}]", file_, name, shape,
         fmt::join(array.sizes(), ", "));
  return array;
}

Tensor SvmData::numbers(const std::string& name, const std::vector<int64_t>& sizes,
                        const std::string& shape) const {
  const auto array = get(name, sizes, shape).to(at::kDouble);
  const auto bad = array.isfinite().logical_not().nonzero();
  if (bad.numel() > 0) {
    const auto first = bad[0].contiguous();
    const auto* index = first.const_data_ptr<int64_t>();
    fail("{}: expected finite {}, but got NaN or Inf at [{}]", file_, name,
         fmt::join(index, index + first.size(0), ", "));
  }
  return array;
}

TokenSets SvmData::sets() const {
  if (has("X")) {
    const auto X = numbers("X", {-1, -1, -1}, "[n, T, d]");
    return TokenSets::cross(X, numbers("Z", {X.size(0), -1}, fmt::format("[{}, dz]", X.size(0))));
  }
  const auto x = numbers("x", {-1, -1}, "[N, dx]"), z = numbers("z", {-1, -1}, "[Q, dz]");
  const auto row_ptr = get("row_ptr", {z.size(0) + 1}, fmt::format("[{}]", z.size(0) + 1));
  TokenSets sets{x, z, row_ptr.to(at::kLong), {}};
  if (has("tok")) sets.tok = get("tok", {-1}, "[nnz]").to(at::kLong);
  return sets;
}

Tensor SvmData::labels(int64_t queries) const {
  const auto labels = numbers("Y", {queries}, fmt::format("[{}]", queries));
  const auto wrong = (labels.abs() != 1).nonzero();
  if (wrong.numel() > 0) {
    const auto first = wrong[0].item<int64_t>();
    fail("{}: expected labels Y of +1 or -1, but got {} at {}", file_, labels[first].item<double>(),
         first);
  }
  return labels;
}

Tensor SvmData::selection(const TokenSets& sets, const std::string& how) const {
  const int64_t Q = sets.z.size(0), dx = sets.x.size(1), dz = sets.z.size(1);
  if (how == "file" && has("sel")) return get("sel", {-1}, "[nnz]").to(at::kBool);
  if (how == "file") return get("alpha", {Q}, fmt::format("[{}]", Q)).to(at::kLong);
  const auto tokens = sets.tok ? sets.x.index_select(0, *sets.tok) : sets.x;
  const auto query = at::arange(Q).repeat_interleave(sets.row_ptr.diff());
  TORCH_CHECK(query.size(0) == tokens.size(0), file_,
              ": expected row_ptr from 0 to nnz = ", tokens.size(0), ", but got ", query.size(0),
              " entries");
  if (how == "argmax") {
    const auto W = numbers("W", {dx, dz}, fmt::format("[{}, {}]", dx, dz));
    const auto y = at::matmul(sets.z, W.t()).index_select(0, query);
    return argmax_of_sets(sets, (tokens * y).sum(1));
  }
  const auto scores = at::matmul(tokens, numbers("v", {dx}, fmt::format("[{}]", dx)));
  return argmax_of_sets(sets, scores * labels(Q).index_select(0, query));
}

}  // namespace kktorch::cli
