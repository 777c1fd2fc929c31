// e4: training loss against the number of iterations, with all samples and with single ones.
#include "train/experiments/shallow/common.h"
#include "train/experiments/shallow/experiments.h"
#include "train/experiments/sweep.h"

namespace kktorch::shallow {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = base_settings(by_preset(preset, 40, 300, 5000), by_preset(preset, 2, 2, 10));
  s["m"] = by_preset(preset, 8, 64, 64);
  s["steps"] = by_preset<std::vector<int>>(preset, {16, 64, 256}, {64, 256, 1024, 4096},
                                           {64, 256, 1024, 4096});
  return s;
}

json measure(const json& s, const Problem& problem, int64_t steps, int64_t batch, uint64_t seed,
             const Context& context, const std::filesystem::path& folder) {
  const auto phi0 = model::symmetric_init(s.at("m"), s.at("d"), seed);
  return train({.data = problem.data,
                .phi0 = phi0,
                .rho = problem.rho,
                .nu = problem.teacher.nu(),
                .steps = steps,
                .batch = batch,
                .seed = seed},
               context, folder);
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  auto problems = problems_of(s);
  std::vector<ResultTable> tables;
  for (const int64_t batch : {0, 1}) {
    const auto sweep =
        run_sweep(context, batch == 0 ? "all-tau" : "single-tau", numbers(s.at("steps")),
                  [&](double steps, uint64_t seed, const auto& folder) {
                    return measure(s, problems.at(seed), static_cast<int64_t>(steps), batch, seed,
                                   context, folder);
                  });
    const std::string note =
        batch == 0 ? ""
                   : "With single samples the loss is evaluated at 256 steps or every "
                     "step: its minimum over those is an upper bound.";
    const auto* title =
        batch == 0 ? "Projected gradient descent" : "Projected SGD, one sample a step";
    append(tables, sweep_tables(sweep, title, "iterations tau", "loss",
                                {{"min_loss", "smallest L_n", "bound: -1/2 until the floor of m"},
                                 {"min_loss_over_var", "smallest L_n / var(y)", "bound: -1/2"},
                                 {"average_loss", "L_n of the mean iterate", "bound: -1/2"}},
                                note));
    append(tables, run_tables(sweep, title, "iterations tau"));
  }
  return tables;
}

}  // namespace

Experiment e4() {
  return {.paper = kPaper,
          .name = "e4",
          .title = "Training loss against the number of iterations",
          .claim =
              "With eta = 1/sqrt(tau) the smallest loss is at most of order 1/sqrt(tau) until "
              "the floor that the number of heads sets; for single samples in expectation.",
          .limits =
              "the theorem's rate: it is a bound from above, faster decay does not "
              "contradict it.",
          .times = {"1 s", "30 s", "40 min"},
          .settings = settings,
          .choices = base_choices(),
          .run = run};
}

}  // namespace kktorch::shallow
