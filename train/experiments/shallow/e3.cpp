// e3: training loss of projected gradient descent against the number of heads.
#include "train/experiments/shallow/common.h"
#include "train/experiments/shallow/experiments.h"
#include "train/experiments/sweep.h"

namespace kktorch::shallow {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = base_settings(by_preset(preset, 40, 200, 5000), by_preset(preset, 2, 4, 10));
  s["m"] = by_preset<std::vector<int>>(preset, {8, 16, 32}, {8, 16, 32, 64, 128},
                                       {8, 16, 32, 64, 128, 256});
  s["steps"] = by_preset(preset, 64, 4000, 4000);
  return s;
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  auto problems = problems_of(s);
  const auto sweep =
      run_sweep(context, "m", numbers(s.at("m")), [&](double m, uint64_t seed, const auto& folder) {
        const auto& problem = problems.at(seed);
        const auto phi0 = model::symmetric_init(static_cast<int64_t>(m), s.at("d"), seed);
        return train({.data = problem.data,
                      .phi0 = phi0,
                      .rho = problem.rho,
                      .nu = problem.teacher.nu(),
                      .steps = s.at("steps"),
                      .seed = seed,
                      .linear_twin = true,
                      .tangent_kernel = true},
                     context, folder);
      });
  auto tables = sweep_tables(sweep, "Loss of projected gradient descent", "heads m", "loss",
                             {{"min_loss", "smallest L_n", "bound: -1/2 until the floor of tau"},
                              {"min_loss_over_var", "smallest L_n / var(y)", "bound: -1/2"},
                              {"average_loss", "L_n of the mean iterate", "bound: -1/2"},
                              {"twin_sup", "sup |f - f_twin| at the end", ""},
                              {"B_lin", "bound B_lin", "-1/2 up to logarithms"}});
  tables.push_back(mean_table(sweep, "Runs", "heads m",
                              {{"step_of_min", "step of the smallest loss"},
                               {"path_length", "path length"},
                               {"workspace_bytes", "workspace of a gradient [bytes]"},
                               {"violations", "violated invariants"}}));
  append(tables, run_tables(sweep, "Runs", "heads m",
                            {{"ntk_drift_c", "drift of the tangent kernel, block c", false},
                             {"ntk_drift_U", "drift of the tangent kernel, block U", false},
                             {"ntk_drift_W", "drift of the tangent kernel, block W", false},
                             {"pair_drift", "distance within a pair of heads", false}}));
  return tables;
}

}  // namespace

Experiment e3() {
  return {.paper = kPaper,
          .name = "e3",
          .title = "Training loss against the number of heads",
          .claim =
              "The smallest training loss of projected gradient descent with eta = "
              "1/sqrt(tau) is at most of order 1/sqrt(tau) + 1/sqrt(m).",
          .limits =
              "the theorem's rate: it bounds the loss from above, its constants are not "
              "known, and nothing is said about the exponent of the dimension.",
          .times = {"2 s", "2 min", "4 h"},
          .settings = settings,
          .choices = base_choices(),
          .run = run};
}

}  // namespace kktorch::shallow
