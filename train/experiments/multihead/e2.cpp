// e2: number of heads on planted data, from zero, with both step rules.
#include <fmt/format.h>

#include "train/experiments/multihead/common.h"
#include "train/experiments/multihead/experiments.h"

namespace kktorch::multihead {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  return {{"n", by_preset<std::vector<int>>(preset, {30}, {500, 1000}, {1000, 3000})},
          {"T", 10},
          {"d", 5},
          {"margin_min", 0.0},
          {"n_test", by_preset(preset, 100, 3000, 3000)},
          {"H", by_preset<std::vector<int>>(preset, {1, 4}, {1, 4}, {1, 2, 4, 10, 20, 50, 100})},
          {"steps", by_preset(preset, 20, 200, 1000)},
          {"step_size", 1.0},
          {"start", "zero"},
          {"seeds", by_preset(preset, 2, 2, 5)}};
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const int64_t T = s.at("T"), d = s.at("d");
  const double margin = s.at("margin_min");
  std::vector<ResultTable> tables;
  for (const auto n : s.at("n").get<std::vector<int64_t>>())
    append(tables,
           sweep_heads(context, fmt::format("n{}", n), [&](int64_t H, uint64_t seed) -> Trial {
             return {model::planted(n, T, d, seed, "train", margin),
                     model::planted(s.at("n_test"), T, d, seed, "test", margin),
                     model::zero_init(H, T, d)};
           }));
  return tables;
}

}  // namespace

Experiment e2() {
  return {.paper = kPaper,
          .name = "e2",
          .title = "Number of heads on planted data, from zero",
          .claim =
              "Labels are signs of one random head; several numbers of heads are trained from "
              "zero, with both step rules side by side.",
          .limits =
              "that more (or fewer) heads optimise faster as in the paper. The details of "
              "the planted model are ours.",
          .times = {"1 s", "10 s", "4 h"},
          .settings = settings,
          .run = run};
}

}  // namespace kktorch::multihead
