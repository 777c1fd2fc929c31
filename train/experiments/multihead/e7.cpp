// e7: final loss against the margin, varying the share of relevant tokens and their norm.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "train/dynamics/margin.h"
#include "train/experiments/multihead/common.h"
#include "train/experiments/multihead/experiments.h"

namespace kktorch::multihead {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = mixture_settings(by_preset(preset, 20, 50, 50), by_preset(preset, 2, 2, 5));
  s["H"] = 4;
  s["zeta"] = {0.1, 0.2, 0.3, 0.5};
  s["S"] = by_preset<std::vector<double>>(preset, {1.0}, {1.0}, {1.0, 1.5, 2.0});
  s["steps"] = by_preset(preset, 20, 500, 2000);
  s["n_test"] = by_preset(preset, 100, 3000, 3000);
  s["start"] = "onestep, n1 = inf, balanced signs";
  return s;
}

struct Setup {
  double zeta, S;
};

json measure(json s, const Setup& setup, uint64_t seed, const Context& context,
             const std::filesystem::path& folder) {
  s["zeta"] = setup.zeta;
  s["S"] = setup.S;
  const auto options = mixture_options(s);
  const auto data = model::mixture(s.at("n"), options, seed, "train");
  const auto test = model::mixture(s.at("n_test"), options, seed, "test");
  const auto start = model::onestep_init(s.at("H"), options, seed, model::Signs::kBalanced);
  const auto margin = [&] {
    const at::NoGradGuard no_grad;
    return dynamics::kernel_margin(model::kernels(data.X, start).total(), data.y);
  }();
  auto summary = train({.data = data,
                        .test = test,
                        .start = start,
                        .step_size = s.at("step_size"),
                        .steps = s.at("steps"),
                        .seed = seed},
                       context, folder)
                     .summary;
  const double share = static_cast<double>(options.relevant_tokens()) / options.T;
  summary["gamma_lin"] = share * setup.S * std::sqrt(options.T / 2.0);
  summary["gamma_lower"] = margin.lower;
  summary["gamma_upper"] = margin.upper;
  return summary;
}

/// Ranks from 1, ties shared.
std::vector<double> ranks(const std::vector<double>& values) {
  std::vector<double> result(values.size());
  for (size_t i = 0; i < values.size(); ++i)
    for (size_t j = 0; j < values.size(); ++j)
      result[i] += values[j] < values[i] ? 1 : values[j] == values[i] ? 0.5 : 0;
  for (auto& rank : result) rank += 0.5;
  return result;
}

/// Spearman's correlation.
double rank_correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const auto x = ranks(a), y = ranks(b);
  const double centre = (static_cast<double>(a.size()) + 1) / 2;
  double xy = 0, xx = 0, yy = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    xy += (x[i] - centre) * (y[i] - centre);
    xx += (x[i] - centre) * (x[i] - centre);
    yy += (y[i] - centre) * (y[i] - centre);
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0;
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  std::vector<Setup> setups;
  for (const double S : numbers(s.at("S")))
    for (const double zeta : numbers(s.at("zeta"))) setups.push_back({zeta, S});
  const auto seeds = context.seeds();
  std::vector<std::string> names;
  for (const auto& [zeta, S] : setups)
    for (const auto seed : seeds) names.push_back(fmt::format("zeta{}-S{}-seed{}", zeta, S, seed));
  const auto results = context.parts(names, [&](size_t i, const auto& folder) {
    return measure(s, setups[i / seeds.size()], seeds[i % seeds.size()], context, folder);
  });

  ResultTable table{"Final loss and margin",
                    {"mixture", "certified margin", "training loss", "gamma_lin", "test error"},
                    {},
                    "Mean ± standard deviation over trials; gamma_lin = zeta S sqrt(T/2).",
                    Figure{.axis = "training loss at the last step",
                           .across = "certified margin",
                           .logarithmic = true,
                           .form = "scatter"}};
  std::vector<double> inverse_solver, inverse_lin, losses;
  for (size_t k = 0; k < setups.size(); ++k) {
    const auto values = [&](const char* key) {
      std::vector<double> of_trials;
      for (size_t j = 0; j < seeds.size(); ++j)
        of_trials.push_back(results[k * seeds.size() + j].at(key).get<double>());
      return of_trials;
    };
    table.rows.push_back({fmt::format("zeta = {}, S = {}", setups[k].zeta, setups[k].S),
                          spread_cell(values("gamma_lower"), "{:.3f}"),
                          spread_cell(values("train_loss"), "{:.3g}"),
                          number_cell(mean(values("gamma_lin")), "{:.3f}"),
                          spread_cell(values("test_err"), "{:.3f}")});
    inverse_solver.push_back(std::pow(std::max(mean(values("gamma_lower")), 1e-12), -2));
    inverse_lin.push_back(std::pow(mean(values("gamma_lin")), -2));
    losses.push_back(mean(values("train_loss")));
  }
  ResultTable ranks_table{
      "Rank correlation of the final loss",
      {"with", "Spearman"},
      {{"1 / certified margin²", number_cell(rank_correlation(inverse_solver, losses), "{:.2f}")},
       {"1 / gamma_lin²", number_cell(rank_correlation(inverse_lin, losses), "{:.2f}")}},
      "1: losses are ordered like the inverse squared margin, as the rate constants of theory are.",
      {}};
  return {table, ranks_table};
}

}  // namespace

Experiment e7() {
  return {.paper = kPaper,
          .name = "e7",
          .title = "Final loss against the margin",
          .claim =
              "The constants of the rates order like the inverse squared margin of the "
              "tangent kernel at the start; measured by rank correlation.",
          .limits =
              "the margin S sqrt(T/2) of saturated attention, which is not reached in this "
              "regime.",
          .times = {"1 s", "5 s", "3 min"},
          .settings = settings,
          .choices = mixture_choices(),
          .run = run};
}

}  // namespace kktorch::multihead
