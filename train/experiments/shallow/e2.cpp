// e2: how well the linearised model at the transported parameters approximates the teacher.
#include "train/common/error.h"
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
                                       {8, 16, 32, 64, 128, 256, 512, 1024});
  return s;
}

json measure(const json& s, PerSeed<Problem>& problems, int64_t m, uint64_t seed) {
  const at::NoGradGuard no_grad;
  if (8 * m > s.at("pool").get<int64_t>())
    fail("shallow e2: expected m <= pool / 8, but got {} and {}", m, s.at("pool").get<int64_t>());
  const auto& problem = problems.at(seed);
  const auto phi0 = model::symmetric_init(m, s.at("d"), seed);
  const model::Linearised linear(problem.data, phi0);
  const auto [sup, rms] =
      model::deviation(linear(problem.teacher.transported(phi0)) - problem.data.y);
  const auto bounds =
      model::constants(phi0, problem.rho, problem.teacher.nu(), problem.data.X.size(0));
  const double sd = std::sqrt(variance(problem.data.y));
  return {{"sup", sup},
          {"rms", rms},
          {"sup_over_sd", sup / sd},
          {"rms_over_sd", rms / sd},
          {"B_app", bounds.B_app}};
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  auto problems = problems_of(s);
  const auto sweep =
      run_sweep(context, "m", numbers(s.at("m")), [&](double m, uint64_t seed, const auto&) {
        return measure(s, problems, static_cast<int64_t>(m), seed);
      });
  return sweep_tables(sweep, "Error of approximation at the comparator", "heads m", "error",
                      {{"sup", "sup |f_lin - y|", "-1/2"},
                       {"rms", "rms", "-1/2"},
                       {"sup_over_sd", "sup over sd(y)", "-1/2"},
                       {"rms_over_sd", "rms over sd(y)", "-1/2"},
                       {"B_app", "reference line B_app", "-1/2"}});
}

}  // namespace

Experiment e2() {
  return {.paper = kPaper,
          .name = "e2",
          .title = "Approximation error against the number of heads",
          .claim =
              "The linearised model with m heads approximates a teacher of the class F_nu to "
              "order m^(-1/2); measured at the parameters that the transportation maps give.",
          .limits =
              "that B_app is a bound: for the part of W it needs ||phi_w|| <= s1, while only "
              "||phi_w|| <= s1 ||U|| holds. The number of anchors is ours.",
          .times = {"1 s", "4 s", "10 min"},
          .settings = settings,
          .choices = base_choices(),
          .run = run};
}

}  // namespace kktorch::shallow
