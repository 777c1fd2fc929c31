// e1: error of the linearised model against the number of heads, at four points of the balls.
#include "ops/shk.h"
#include "train/experiments/shallow/common.h"
#include "train/experiments/shallow/experiments.h"
#include "train/experiments/sweep.h"

namespace kktorch::shallow {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = base_settings(by_preset(preset, 40, 500, 5000), by_preset(preset, 2, 4, 10));
  s["m"] = by_preset<std::vector<int>>(preset, {8, 16, 32}, {8, 16, 32, 64, 128, 256, 512, 1024},
                                       {8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096});
  s["ascent_steps"] = by_preset(preset, 5, 50, 50);
  return s;
}

json measure(const json& s, int64_t m, uint64_t seed) {
  const at::NoGradGuard no_grad;
  const auto problem = unlabelled_problem_of(s, seed);
  const auto phi0 = model::symmetric_init(m, s.at("d"), seed);
  const model::Linearised linear(problem.data, phi0);
  const auto bounds =
      model::constants(phi0, problem.rho, problem.teacher.nu(), problem.data.X.size(0));
  json result = {{"B_lin", bounds.B_lin}};
  const auto add = [&](const std::string& point, const model::Params& phi) {
    const auto& d = problem.data;
    const auto f = shk_output(d.X, d.q, phi.W, phi.U, phi.c);
    const auto [sup, rms] = model::deviation(f - linear(phi));
    result[point + "_sup"] = sup;
    result[point + "_rms"] = rms;
    result[point + "_over_bound"] = sup / bounds.B_lin;
  };
  add("random", model::random_boundary(phi0, problem.rho, seed));
  add("aligned", model::aligned_boundary(phi0, problem.rho, problem.data, 0, seed));
  add("ascent",
      model::ascent_boundary(phi0, problem.rho, problem.data, 0, seed, s.at("ascent_steps")));
  add("comparator", problem.teacher.transported(phi0));
  return result;
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const auto sweep =
      run_sweep(context, "m", numbers(s.at("m")), [&](double m, uint64_t seed, const auto&) {
        return measure(s, static_cast<int64_t>(m), seed);
      });
  auto tables =
      sweep_tables(sweep, "Error of linearisation, by boundary point", "heads m", "sup |f - f_lin|",
                   {{"aligned_sup", "aligned, sup", "-1/2 (worst case)"},
                    {"aligned_rms", "aligned, rms", ""},
                    {"ascent_sup", "ascent from aligned, sup", "-1/2 (worst case)"},
                    {"random_sup", "random, sup", "about -1: heads average out"},
                    {"random_rms", "random, rms", ""},
                    {"comparator_sup", "comparator, sup", "about -1: pairs cancel"},
                    {"B_lin", "bound B_lin", "-1/2 up to logarithms"}});
  tables.push_back(mean_table(sweep, "Error over its bound B_lin (at most 1)", "heads m",
                              {{"aligned_over_bound", "aligned"},
                               {"ascent_over_bound", "ascent"},
                               {"random_over_bound", "random"},
                               {"comparator_over_bound", "comparator"}}));
  return tables;
}

}  // namespace

Experiment e1() {
  return {.paper = kPaper,
          .name = "e1",
          .title = "Linearisation error against the number of heads",
          .claim =
              "Within the balls, |f - f_lin| is at most B_lin, of order m^(-1/2); measured at "
              "random and aligned boundary points, after an ascent, and at the comparator.",
          .limits =
              "one slope of \"the\" linearisation error: it depends on the boundary point, "
              "which the paper does not specify (these are ours), and m^(-1/2) is not the "
              "typical behaviour.",
          .times = {"1 s", "2 s", "30 min"},
          .settings = settings,
          .choices = base_choices(),
          .run = run};
}

}  // namespace kktorch::shallow
