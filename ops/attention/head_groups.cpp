#include "ops/attention/head_groups.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/split_with_sizes.h>

#include <algorithm>
#include <vector>

namespace kktorch::detail {
namespace {

using at::Tensor;

/// Runs of neighbouring key heads of one scale, in the order of the heads.
struct Runs {
  std::vector<int64_t> scales, counts;
};

Runs runs_of(at::IntArrayRef scales) {
  Runs runs;
  for (const auto scale : scales) {
    if (runs.scales.empty() || runs.scales.back() != scale) {
      runs.scales.push_back(scale);
      runs.counts.push_back(0);
    }
    ++runs.counts.back();
  }
  return runs;
}

/// `t` cut along `dim`, into as many entries per key head as `width`. One split, whose gradient is
/// one concatenation: that of a slice is a tensor of the full size, zero elsewhere, and these are
/// added up.
std::vector<Tensor> cut(const Tensor& t, int64_t dim, std::vector<int64_t> counts, int64_t width) {
  if (counts.size() == 1) return {t};
  for (auto& count : counts) count *= width;
  return at::split_with_sizes(t, counts, dim);
}

template <typename T>
std::vector<T> chosen(const std::vector<T>& from, const std::vector<size_t>& indices) {
  std::vector<T> result;
  for (const auto i : indices) result.push_back(from[i]);
  return result;
}

Tensor join(const std::vector<Tensor>& parts, int64_t dim) {
  return parts.size() == 1 ? parts.front() : at::cat(parts, dim);
}

/// The tensors of all heads, cut into runs.
struct RunTensors {
  std::vector<Tensor> query, key, value, beta,
      attn_mask;  // the last two may be empty: not per head

  RunTensors(const HeadTensors& all, const Runs& runs, int64_t G)
      : query(cut(all.query, 1, runs.counts, G)),
        key(cut(all.key, 1, runs.counts, 1)),
        value(cut(all.value, 1, runs.counts, 1)) {
    if (all.beta && all.beta->dim() == 1 && all.beta->sym_size(0) == all.query.sym_size(1))
      beta = cut(*all.beta, 0, runs.counts, G);
    if (all.attn_mask && all.attn_mask->dim() == 4 && all.attn_mask->sym_size(1) != 1)
      attn_mask = cut(*all.attn_mask, 1, runs.counts, G);
  }

  HeadGroup group(const HeadTensors& all, int64_t scale, const std::vector<size_t>& members) const {
    const auto of = [&](const std::vector<Tensor>& parts, int64_t dim) {
      return join(chosen(parts, members), dim);
    };
    HeadGroup group{{of(query, 1), of(key, 1), of(value, 1), all.beta, all.attn_mask}, scale};
    if (!beta.empty()) group.beta = of(beta, 0);
    if (!attn_mask.empty()) group.attn_mask = of(attn_mask, 1);
    return group;
  }
};

}  // namespace

void check_scales(std::string_view op, const AttentionArguments& a, at::IntArrayRef scales,
                  std::string_view tail, const c10::SymInt& num_special) {
  const auto Hk = a.key.sym_size(1), N = a.key.sym_size(2);
  const bool positive = std::all_of(scales.begin(), scales.end(), [](auto s) { return s >= 1; });
  TORCH_CHECK_VALUE(positive && !scales.empty() &&
                        (scales.size() == 1 || static_cast<int64_t>(scales.size()) == Hk),
                    op, ": expected 1 or ", Hk, " scales, each >= 1, but got ", scales);
  TORCH_CHECK_VALUE(tail == "ceil" || tail == "drop", op,
                    ": expected tail 'ceil' or 'drop', but got '", tail, "'");
  TORCH_CHECK_VALUE(num_special >= 0 && num_special <= N, op, ": expected 0 <= num_special <= ", N,
                    ", but got ", num_special);
  const bool pools = std::any_of(scales.begin(), scales.end(), [](auto s) { return s > 1; });
  TORCH_CHECK(!pools || !a.attn_mask || a.attn_mask->scalar_type() == at::kBool, op,
              ": expected a bool attn_mask when a scale exceeds 1, but got ",
              a.attn_mask->scalar_type());
  if (tail != "drop" || N == 0) return;
  for (size_t h = 0; h < scales.size(); ++h)
    TORCH_CHECK_VALUE(num_special > 0 || N >= scales[h], op,
                      ": tail='drop' leaves no key for head ", h, " (N=", N, ", scale=", scales[h],
                      ")");
}

Tensor for_each_scale(at::IntArrayRef scales, const HeadTensors& heads,
                      const std::function<Tensor(const HeadGroup&)>& attend) {
  if (std::equal(scales.begin() + 1, scales.end(), scales.begin()))
    return attend({heads, scales.front()});
  const int64_t Hk = static_cast<int64_t>(scales.size());
  const int64_t G = heads.query.sym_size(1).guard_int(__FILE__, __LINE__) / Hk;
  const auto runs = runs_of(scales);
  const RunTensors parts(heads, runs, G);
  std::vector<Tensor> by_run(runs.scales.size());
  for (size_t first = 0; first < by_run.size(); ++first) {
    if (by_run[first].defined()) continue;  // attended with an earlier run of its scale
    std::vector<size_t> members;
    for (size_t i = first; i < by_run.size(); ++i)
      if (runs.scales[i] == runs.scales[first]) members.push_back(i);
    const auto out = attend(parts.group(heads, runs.scales[first], members));
    const auto pieces = cut(out.transpose(1, 2), 2, chosen(runs.counts, members), G);
    for (size_t i = 0; i < members.size(); ++i) by_run[members[i]] = pieces[i];
  }
  return at::cat(by_run, 2).transpose(1, 2);
}

}  // namespace kktorch::detail
