// e3: from a good initialisation: margins of the tangent kernel, constants of the
// initialisation, and the curves of e1.
#include "ops/mhgd.h"
#include "train/dynamics/margin.h"
#include "train/experiments/multihead/common.h"
#include "train/experiments/multihead/experiments.h"

namespace kktorch::multihead {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = mixture_settings(by_preset(preset, 20, 100, 100), by_preset(preset, 2, 2, 5));
  s["n_test"] = by_preset(preset, 100, 3000, 3000);
  s["n1"] = by_preset(preset, 100, 1000, 1000);
  s["H"] =
      by_preset<std::vector<int>>(preset, {2, 4, 8}, {2, 8, 32}, {2, 4, 8, 16, 32, 64, 128, 256});
  s["steps"] = by_preset(preset, 20, 200, 1000);
  s["start"] = "onestep";
  return s;
}

model::Params start_of(const json& s, int64_t H, uint64_t seed) {
  const auto other = model::mixture(s.at("n1"), mixture_options(s), seed, "n1");
  return model::onestep_init(H, other, seed, model::Signs::kRademacher);
}

/// What the conditions on a good initialisation speak of.
json initial(const json& s, int64_t H, uint64_t seed) {
  const at::NoGradGuard no_grad;
  const auto data = model::mixture(s.at("n"), mixture_options(s), seed, "train");
  const auto start = start_of(s, H, seed);
  const auto phi = mhgd_logits(data.X, start.W, start.U);
  const auto margin = dynamics::kernel_margin(model::kernels(data.X, start).total(), data.y);
  return {{"B_2", model::bounds(start, data.R).theta_2inf},
          {"B_Phi", phi.abs().max().item<double>()},
          {"margin_lower", margin.lower},
          {"margin_upper", margin.upper}};
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const auto options = mixture_options(s);
  const auto sweep = run_sweep(context, "initial-H", numbers(s.at("H")),
                               [&](double H, uint64_t seed, const auto&) {
                                 return initial(s, static_cast<int64_t>(H), seed);
                               });
  std::vector<ResultTable> tables = {
      mean_table(sweep, "Constants of the initialisation", "heads H",
                 {{"B_2", "B_2 = ||theta_0||_{2,inf}"},
                  {"B_Phi", "B_Phi = max |Phi|"},
                  {"margin_lower", "margin of the tangent kernel, at least"},
                  {"margin_upper", "and at most"}},
                 "The margin is certified from both sides (away-step Frank-Wolfe).")};
  append(tables, sweep_heads(context, "onestep", [&](int64_t H, uint64_t seed) -> Trial {
           return {model::mixture(s.at("n"), options, seed, "train"),
                   model::mixture(s.at("n_test"), options, seed, "test"), start_of(s, H, seed)};
         }));
  return tables;
}

}  // namespace

Experiment e3() {
  return {.paper = kPaper,
          .name = "e3",
          .title = "Good initialisation: one randomised step from zero",
          .claim =
              "After one step on other samples the initialisation satisfies the three "
              "conditions of the theory: bounded parameters, bounded outputs, and a tangent "
              "kernel that separates the data with a margin.",
          .limits =
              "that the condition on the number of heads holds: its constants cannot be met "
              "at any feasible size. The normalisation of the step is ours.",
          .times = {"1 s", "15 s", "30 min"},
          .settings = settings,
          .choices = mixture_choices(),
          .run = run};
}

}  // namespace kktorch::multihead
