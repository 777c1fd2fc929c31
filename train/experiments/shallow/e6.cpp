// e6: everything against the length of the sequences, which the bounds do not contain.
#include <cmath>

#include "ops/shk.h"
#include "train/experiments/shallow/common.h"
#include "train/experiments/shallow/experiments.h"
#include "train/experiments/sweep.h"

namespace kktorch::shallow {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = base_settings(by_preset(preset, 30, 200, 2000), by_preset(preset, 2, 2, 10));
  s["T"] = by_preset<std::vector<int>>(preset, {4, 8, 16}, {4, 8, 16, 32, 64},
                                       {4, 8, 16, 32, 64, 128, 256});
  s["m"] = by_preset(preset, 8, 32, 32);
  s["steps"] = by_preset(preset, 32, 1000, 1000);
  return s;
}

json measure(json s, int64_t T, uint64_t seed, const Context& context,
             const std::filesystem::path& folder) {
  const at::NoGradGuard no_grad;
  s["T"] = T;
  const auto problem = problem_of(s, seed);
  const auto phi0 = model::symmetric_init(s.at("m"), s.at("d"), seed);
  auto result = train({.data = problem.data,
                       .phi0 = phi0,
                       .rho = problem.rho,
                       .nu = problem.teacher.nu(),
                       .steps = s.at("steps"),
                       .seed = seed},
                      context, folder);
  const auto& d = problem.data;
  const model::Linearised linear(d, phi0);
  const auto aligned = model::aligned_boundary(phi0, problem.rho, d, 0, seed);
  const auto f = shk_output(d.X, d.q, aligned.W, aligned.U, aligned.c);
  result["linearisation_sup"] = model::deviation(f - linear(aligned)).sup;
  result["approximation_sup"] =
      model::deviation(linear(problem.teacher.transported(phi0)) - d.y).sup;
  const auto norms = linear.G().flatten(1).norm(2, 1) * d.q.norm(2, 1);
  result["gradient_W"] = norms.max().item<double>() / std::sqrt(s.at("m").get<double>());
  result["state_transformer"] = T * s.at("d").get<int64_t>() * 8;
  result["state_recurrent"] = s.at("m").get<int64_t>() * 8;
  return result;
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const auto sweep =
      run_sweep(context, "T", numbers(s.at("T")), [&](double T, uint64_t seed, const auto& folder) {
        return measure(s, static_cast<int64_t>(T), seed, context, folder);
      });
  auto tables =
      sweep_tables(sweep, "Against the length", "length T", "value",
                   {{"min_loss", "smallest L_n", "the bound contains no T"},
                    {"min_loss_over_var", "smallest L_n / var(y)", "the bound contains no T"},
                    {"gradient_W", "largest ||grad_W f|| at the start", "bounded, no T"},
                    {"linearisation_sup", "aligned sup |f - f_lin|", "bounded, no T"},
                    {"approximation_sup", "sup |f_lin - y|", "bounded, no T"},
                    {"variance", "var(y)", ""}},
                   "Anchors, teacher and data are drawn again for every length.");
  append(tables,
         sweep_tables(sweep, "State of inference, and memory of training", "length T", "bytes",
                      {{"state_transformer", "transformer: its tokens", "1"},
                       {"state_recurrent", "recurrent network: its heads", "0"},
                       {"workspace_bytes", "workspace of a gradient", "", false}},
                      "State while a sequence is read; the workspace is what training "
                      "allocates besides parameters and data."));
  append(tables, run_tables(sweep, "Runs", "length T"));
  return tables;
}

}  // namespace

Experiment e6() {
  return {.paper = kPaper,
          .name = "e6",
          .title = "Dependence on the length",
          .claim =
              "The bounds on training, linearisation and approximation do not contain the "
              "length T; the cost is a state of inference that grows with T.",
          .limits =
              "that nothing depends on T: the scale of the labels does, so losses of "
              "different T compare only over var(y), and irregularity at small T does not "
              "contradict a bound.",
          .times = {"1 s", "10 s", "40 min"},
          .settings = settings,
          .choices = base_choices(),
          .run = run};
}

}  // namespace kktorch::shallow
