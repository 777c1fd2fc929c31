// e1: number of heads on the tokenised mixture, from zero, with both step rules.
#include <fmt/format.h>

#include "train/experiments/multihead/common.h"
#include "train/experiments/multihead/experiments.h"

namespace kktorch::multihead {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = mixture_settings(0, by_preset(preset, 2, 2, 5));
  s["n"] = by_preset<std::vector<int>>(preset, {20}, {100, 300}, {100, 300});
  s["zeta"] = 0.1;
  s["M"] = 20;
  s["d"] = 22;
  s["n_test"] = by_preset(preset, 100, 3000, 3000);
  s["H"] = by_preset<std::vector<int>>(preset, {1, 4}, {1, 4, 20}, {1, 2, 4, 10, 20, 50, 100});
  s["steps"] = by_preset(preset, 20, 300, 1000);
  s["start"] = "zero";
  return s;
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const auto options = mixture_options(s);
  std::vector<ResultTable> tables;
  for (const auto n : s.at("n").get<std::vector<int64_t>>())
    append(tables,
           sweep_heads(context, fmt::format("n{}", n), [&](int64_t H, uint64_t seed) -> Trial {
             return {model::mixture(n, options, seed, "train"),
                     model::mixture(s.at("n_test"), options, seed, "test"),
                     model::zero_init(H, options.T, options.d)};
           }));
  return tables;
}

}  // namespace

Experiment e1() {
  return {.paper = kPaper,
          .name = "e1",
          .title = "Number of heads on the tokenised mixture, from zero",
          .claim =
              "The paper's figure trains the mixture with several numbers of heads from zero. "
              "From zero all heads stay equal: H heads with step eta are one head whose two "
              "parameters have the steps eta and eta/H (exact), so both step rules are shown.",
          .limits =
              "that more (or fewer) heads optimise faster as in the paper: the direction of "
              "its figure is not confirmed. T, d, zeta, M and the list of heads are ours.",
          .times = {"1 s", "45 s", "1 h"},
          .settings = settings,
          .choices = mixture_choices(),
          .run = run};
}

}  // namespace kktorch::multihead
