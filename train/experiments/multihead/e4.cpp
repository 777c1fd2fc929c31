// e4: decay of the training loss with the steps, of the generalisation gap with the samples, and
// the distance travelled.
#include <fmt/format.h>

#include <cmath>

#include "train/experiments/curves.h"
#include "train/experiments/multihead/common.h"
#include "train/experiments/multihead/experiments.h"

namespace kktorch::multihead {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = mixture_settings(by_preset(preset, 20, 100, 100), by_preset(preset, 2, 3, 5));
  s["H"] = 4;
  s["steps"] = by_preset<std::vector<int>>(preset, {16, 32, 64}, {125, 250, 500, 1000},
                                           {512, 1024, 2048, 4096});
  s["samples"] = by_preset<std::vector<int>>(preset, {10, 20, 40}, {50, 100, 200, 400},
                                             {50, 100, 200, 400, 800, 1600, 3200});
  if (preset == Preset::kSmoke) s["n_test"] = 200;
  s["start"] = "zero";
  return s;
}

json measure(const json& s, int64_t n, int64_t steps, uint64_t seed, const Context& context,
             const std::filesystem::path& folder) {
  const auto options = mixture_options(s);
  const auto data = model::mixture(n, options, seed, "train");
  const auto test = model::mixture(test_size(s, n), options, seed, "test");
  const auto start = model::zero_init(s.at("H"), options.T, options.d);
  auto summary = train({.data = data,
                        .test = test,
                        .start = start,
                        .step_size = s.at("step_size"),
                        .steps = steps,
                        .seed = seed},
                       context, folder)
                     .summary;
  summary["dist_over_log"] =
      summary.at("dist").get<double>() / std::log(static_cast<double>(steps));
  return summary;
}

/// The points whose mean gap is at least two standard errors from 0.
Sweep resolved(const Sweep& sweep, std::string& note) {
  Sweep kept{sweep.variable, {}, std::vector<std::vector<json>>(sweep.results.size()), {}};
  const auto values = sweep.values("gap");
  for (size_t i = 0; i < sweep.x.size(); ++i) {
    std::vector<double> gaps;
    for (const auto& trial : values) gaps.push_back(trial[i]);
    const double error = sample_sd(gaps) / std::sqrt(static_cast<double>(gaps.size()));
    if (!(mean(gaps) >= 2 * error)) {
      note += fmt::format(" n = {}: below resolution.", sweep.x[i]);
      continue;
    }
    kept.x.push_back(sweep.x[i]);
    for (size_t trial = 0; trial < kept.results.size(); ++trial)
      kept.results[trial].push_back(sweep.results[trial][i]);
  }
  return kept;
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const auto by_steps = run_sweep(
      context, "K", numbers(s.at("steps")), [&](double K, uint64_t seed, const auto& folder) {
        return measure(s, s.at("n"), static_cast<int64_t>(K), seed, context, folder);
      });
  auto tables = sweep_tables(by_steps, "Against the steps", "steps K", "value at step K",
                             {{"train_loss", "training loss", "bound: -1 up to logarithms"},
                              {"dist", "||theta - theta_0||", "at most log K"},
                              {"dist_over_log", "||theta - theta_0|| / log K", "bounded"}});
  append(tables, curve_tables(by_steps, "Runs", "steps K",
                              {{"train_loss", "training loss"},
                               {"gap", "test loss - training loss", false},
                               {"dist", "||theta - theta_0||", false}}));
  const auto by_samples = run_sweep(context, "n", numbers(s.at("samples")),
                                    [&](double n, uint64_t seed, const auto& folder) {
                                      const auto size = static_cast<int64_t>(n);
                                      return measure(s, size, size, seed, context, folder);
                                    });
  tables.push_back(mean_table(by_samples, "Against the samples, K = n", "samples n",
                              {{"gap", "test loss - training loss"},
                               {"train_loss", "training loss"},
                               {"test_err", "test error"}}));
  std::string note = "K = n.";
  const auto kept = resolved(by_samples, note);
  if (!kept.x.empty())
    append(tables, sweep_tables(kept, "Generalisation gap against the samples", "samples n",
                                "test loss - training loss",
                                {{"gap", "gap", "bound: -1 at K of order n"}}, note));
  return tables;
}

}  // namespace

Experiment e4() {
  return {.paper = kPaper,
          .name = "e4",
          .title = "Rates: training loss, generalisation gap, distance",
          .claim =
              "The training loss is at most of order 1/K and the gap at most of order 1/n "
              "with K of order n, up to logarithms; the parameters move at most like log K.",
          .limits =
              "equality with the exponents: they are bounds from above, faster decay does "
              "not contradict them, and no tightness of 1/n is claimed.",
          .times = {"1 s", "15 s", "30 min"},
          .settings = settings,
          .choices = mixture_choices(),
          .run = run};
}

}  // namespace kktorch::multihead
