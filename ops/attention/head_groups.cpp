#include "ops/attention/head_groups.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <vector>

namespace kktorch::detail {
namespace {

using at::Tensor;

/// Consecutive key heads [begin, begin + count).
struct Run {
  int64_t begin, count;
};

struct ScaleRuns {
  int64_t scale;
  std::vector<Run> runs;
};

std::vector<ScaleRuns> sort_by_scale(at::IntArrayRef scales) {
  std::vector<ScaleRuns> sorted;
  for (int64_t h = 0; h < static_cast<int64_t>(scales.size()); ++h) {
    const auto same = [&](const ScaleRuns& s) { return s.scale == scales[h]; };
    auto found = std::find_if(sorted.begin(), sorted.end(), same);
    if (found == sorted.end()) found = sorted.insert(sorted.end(), {scales[h], {}});
    auto& runs = found->runs;
    if (!runs.empty() && runs.back().begin + runs.back().count == h)
      ++runs.back().count;
    else
      runs.push_back({h, 1});
  }
  return sorted;
}

/// The entries of `runs` along `dim`, `width` per key head.
Tensor take(const Tensor& t, int64_t dim, const std::vector<Run>& runs, int64_t width = 1) {
  std::vector<Tensor> parts;
  for (const auto& run : runs) parts.push_back(t.narrow(dim, run.begin * width, run.count * width));
  return parts.size() == 1 ? parts.front() : at::cat(parts, dim);
}

HeadGroup group_of(const HeadTensors& all, const ScaleRuns& s, int64_t G) {
  HeadGroup group{{take(all.query, 1, s.runs, G), take(all.key, 1, s.runs),
                   take(all.value, 1, s.runs), all.beta, all.attn_mask},
                  s.scale};
  if (all.beta && all.beta->dim() == 1 && all.beta->sym_size(0) == all.query.sym_size(1))
    group.beta = take(*all.beta, 0, s.runs, G);
  if (all.attn_mask && all.attn_mask->dim() == 4 && all.attn_mask->sym_size(1) != 1)
    group.attn_mask = take(*all.attn_mask, 1, s.runs, G);
  return group;
}

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
  std::vector<Tensor> by_head(scales.size());  // the run that begins at a key head
  for (const auto& s : sort_by_scale(scales)) {
    const auto out = attend(group_of(heads, s, G)).transpose(1, 2);  // [B, M, heads, Dv]
    int64_t done = 0;
    for (const auto& run : s.runs) {
      by_head[run.begin] = out.narrow(2, done * G, run.count * G);
      done += run.count;
    }
  }
  std::erase_if(by_head, [](const Tensor& t) { return !t.defined(); });
  return at::cat(by_head, 2).transpose(1, 2);
}

}  // namespace kktorch::detail
