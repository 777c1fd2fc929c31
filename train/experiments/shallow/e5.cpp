// e5: error of approximation against the number of samples and of anchors.
#include <fmt/format.h>

#include "train/experiments/shallow/common.h"
#include "train/experiments/shallow/experiments.h"
#include "train/experiments/sweep.h"

namespace kktorch::shallow {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = base_settings(0, by_preset(preset, 2, 4, 10));
  s["n"] = by_preset<std::vector<int>>(preset, {20, 50, 100}, {50, 158, 500, 1581, 5000},
                                       {50, 500, 5000, 50000});
  s["m"] = by_preset<std::vector<int>>(preset, {16}, {64}, {64, 256});
  s["anchor_list"] =
      by_preset<std::vector<int>>(preset, {1, 2, 4}, {1, 2, 4, 8, 16}, {1, 2, 4, 8, 16});
  s["anchor_samples"] = by_preset(preset, 40, 500, 5000);
  return s;
}

json measure(json s, int64_t n, int64_t anchors, int64_t m, uint64_t seed) {
  const at::NoGradGuard no_grad;
  s["n"] = n;
  s["anchors"] = anchors;
  const auto problem = problem_of(s, seed);
  const auto phi0 = model::symmetric_init(m, s.at("d"), seed);
  // f_lin at the comparator is a mean over heads: features of a few heads at a time
  const auto v = problem.teacher.transport(phi0.W, phi0.U);
  const auto f = model::mean_features(problem.data, phi0.W, phi0.U, v, "tanh");
  const auto [sup, rms] = model::deviation(f - problem.data.y);
  const double label_variance = variance(problem.data.y), sd = std::sqrt(label_variance);
  return {{"sup", sup},
          {"rms", rms},
          {"sup_over_sd", sup / sd},
          {"variance", label_variance},
          {"sup_over_log",
           sup / std::sqrt(std::log(2 * static_cast<double>(n) / s.at("delta").get<double>()))}};
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  std::vector<ResultTable> tables;
  for (const auto m : s.at("m").get<std::vector<int64_t>>()) {
    const auto by_n =
        run_sweep(context, fmt::format("m{}-n", m), numbers(s.at("n")),
                  [&](double n, uint64_t seed, const auto&) {
                    return measure(s, static_cast<int64_t>(n), s.at("anchors"), m, seed);
                  });
    append(tables,
           sweep_tables(by_n, fmt::format("Error of approximation against the samples, m = {}", m),
                        "samples n", "error",
                        {{"sup", "sup |f_lin - y|", "bound: sqrt(log n), exponent to 0"},
                         {"sup_over_log", "sup over sqrt(log(2n/delta))", "bounded"},
                         {"rms", "rms", "0"}}));
    const auto by_anchors = run_sweep(
        context, fmt::format("m{}-anchors", m), numbers(s.at("anchor_list")),
        [&](double anchors, uint64_t seed, const auto&) {
          return measure(s, s.at("anchor_samples"), static_cast<int64_t>(anchors), m, seed);
        });
    append(tables,
           sweep_tables(by_anchors,
                        fmt::format("Error of approximation against the anchors, m = {}", m),
                        "anchors R", "error",
                        {{"sup", "sup |f_lin - y|", ""},
                         {"sup_over_sd", "sup over sd(y)", ""},
                         {"variance", "var(y)", ""}}));
  }
  return tables;
}

}  // namespace

Experiment e5() {
  return {.paper = kPaper,
          .name = "e5",
          .title = "Approximation error against the number of samples",
          .claim =
              "The largest error of approximation over n samples grows at most like "
              "sqrt(log n); measured also against the number of anchors of the teacher.",
          .limits =
              "anything about the paper's teacher: the number of anchors is ours, and the "
              "scale of the labels depends on it (see var(y)).",
          .times = {"1 s", "45 s", "30 min"},
          .settings = settings,
          .choices = base_choices(),
          .run = run};
}

}  // namespace kktorch::shallow
