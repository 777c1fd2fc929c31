// e5: curvature of the loss along runs against its bounds.
#include "train/experiments/curves.h"
#include "train/experiments/multihead/common.h"
#include "train/experiments/multihead/experiments.h"

namespace kktorch::multihead {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = mixture_settings(by_preset(preset, 10, 50, 50), by_preset(preset, 2, 2, 5));
  s["H"] = by_preset<std::vector<int>>(preset, {2, 4, 8}, {2, 4, 8}, {2, 4, 8, 16, 32, 64, 128});
  s["steps"] = by_preset(preset, 8, 200, 1000);
  s["n_test"] = by_preset(preset, 100, 3000, 3000);
  return s;
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const auto options = mixture_options(s);
  std::vector<ResultTable> tables;
  for (const bool zero : {true, false}) {
    const std::string name = zero ? "zero" : "onestep";
    const auto sweep =
        run_sweep(context, name + "-H", numbers(s.at("H")),
                  [&](double heads, uint64_t seed, const auto& folder) {
                    const auto H = static_cast<int64_t>(heads);
                    const auto data = model::mixture(s.at("n"), options, seed, "train");
                    const auto test = model::mixture(s.at("n_test"), options, seed, "test");
                    const auto start =
                        zero ? model::zero_init(H, options.T, options.d)
                             : model::onestep_init(H, options, seed, model::Signs::kRademacher);
                    return train({.data = data,
                                  .test = test,
                                  .start = start,
                                  .step_size = s.at("step_size"),
                                  .steps = s.at("steps"),
                                  .seed = seed,
                                  .tangent_kernel = true,
                                  .curvature = true},
                                 context, folder)
                        .summary;
                  });
    append(tables,
           sweep_tables(sweep, "Curvature at the last step, start " + name, "heads H", "value",
                        {{"kappa", "kappa", "-1/2 at fixed ||theta||"},
                         {"negative_over_loss", "-lambda_min / L (at most kappa)", ""},
                         {"lambda_max", "lambda_max", ""},
                         {"grad_over_loss", "||grad L|| / L (at most beta_1)", ""},
                         {"beta1", "beta_1", ""}}));
    tables.push_back(
        mean_table(sweep, "Tangent kernel at the last step, start " + name, "heads H",
                   {{"ntk_drift_U", "drift of block U"},
                    {"ntk_drift_W", "drift of block W (absolute where it starts at 0)"},
                    {"ntk_alignment", "alignment with the labels"},
                    {"violations", "violated invariants"}}));
    append(tables, curve_tables(sweep, "Start " + name, "heads H",
                                {{"train_loss", "training loss"},
                                 {"ntk_drift_U", "drift of the tangent kernel, block U", false},
                                 {"ntk_drift_W", "drift of the tangent kernel, block W", false}}));
    tables.push_back(bound_table(sweep, "Start " + name,
                                 {{"grad_over_bound", "||grad L|| / L over beta_1"},
                                  {"largest_over_bound", "lambda_max over its bound"},
                                  {"smallest_over_bound", "-lambda_min / L over kappa"}}));
  }
  return tables;
}

}  // namespace

Experiment e5() {
  return {.paper = kPaper,
          .name = "e5",
          .title = "Curvature against its bounds",
          .claim =
              "The loss is self-bounded: ||grad L|| <= beta_1 L at every step, and weakly "
              "convex: lambda_min >= -kappa L with kappa of order H^(-1/2).",
          .limits =
              "anything about the constants of the paper, which have extra factors; the "
              "eigenvalues are Ritz values of finite differences.",
          .times = {"1 s", "5 s", "20 min"},
          .settings = settings,
          .choices = mixture_choices(),
          .run = run};
}

}  // namespace kktorch::multihead
