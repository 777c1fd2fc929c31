// e6: distance of the model from its linearisation after some steps, against the heads.
#include "train/experiments/multihead/common.h"
#include "train/experiments/multihead/experiments.h"

namespace kktorch::multihead {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = mixture_settings(by_preset(preset, 10, 50, 50), by_preset(preset, 2, 3, 5));
  s["H"] = by_preset<std::vector<int>>(preset, {2, 4, 8}, {2, 4, 8, 16, 32},
                                       {2, 4, 8, 16, 32, 64, 128, 256});
  s["steps"] = by_preset(preset, 8, 50, 200);
  s["n_test"] = 100;
  s["s_u"] = 0.1;
  s["s_w"] = 0.1;
  return s;
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const auto options = mixture_options(s);
  std::vector<ResultTable> tables;
  for (const bool symmetric : {false, true}) {
    const std::string name = symmetric ? "symmetric" : "onestep";
    const auto sweep = run_sweep(
        context, name + "-H", numbers(s.at("H")),
        [&](double heads, uint64_t seed, const auto& folder) {
          const auto H = static_cast<int64_t>(heads);
          const auto data = model::mixture(s.at("n"), options, seed, "train");
          const auto test = model::mixture(s.at("n_test"), options, seed, "test");
          const auto start =
              symmetric
                  ? model::symmetric_init(H, options.T, options.d, seed, s.at("s_u"), s.at("s_w"))
                  : model::onestep_init(H, options, seed, model::Signs::kBalanced);
          return train({.data = data,
                        .test = test,
                        .start = start,
                        .step_size = s.at("step_size"),
                        .steps = s.at("steps"),
                        .seed = seed},
                       context, folder)
              .summary;
        });
    append(tables, sweep_tables(sweep, "Linearisation error, start " + name, "heads H",
                                "|Phi - Phi_lin| at the last step",
                                {{"linearisation_sup", "sup", "-1/2 or steeper"},
                                 {"linearisation_rms", "rms", "-1/2 or steeper"}}));
  }
  return tables;
}

}  // namespace

Experiment e6() {
  return {.paper = kPaper,
          .name = "e6",
          .title = "Linearisation error against the number of heads",
          .claim =
              "From a random start, after a fixed number of steps, the model differs from its "
              "linearisation (at the same parameters) by at most order H^(-1/2).",
          .limits = "the distance of the run from a linear twin, which is another quantity.",
          .times = {"1 s", "5 s", "5 min"},
          .settings = settings,
          .choices = mixture_choices(),
          .run = run};
}

}  // namespace kktorch::multihead
