// e8: stability: how far the parameters move if one training sample is left out.
#include <algorithm>
#include <cmath>

#include "train/experiments/multihead/common.h"
#include "train/experiments/multihead/experiments.h"

namespace kktorch::multihead {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  auto s = mixture_settings(0, by_preset(preset, 2, 2, 5));
  s["n"] = by_preset<std::vector<int>>(preset, {10, 20}, {50}, {50, 100, 200, 400, 800});
  s["H"] = 4;
  s["left_out"] = by_preset(preset, 2, 5, 20);
  s["n_test"] = by_preset(preset, 100, 3000, 3000);
  s["start"] = "zero";
  s["steps"] = "n";
  return s;
}

model::Data without(const model::Data& data, int64_t sample) {
  const int64_t n = data.X.size(0);
  const auto all = torch::arange(n), kept = all.index({all != sample});
  return {data.X.index_select(0, kept), data.y.index_select(0, kept),
          data.relevant.index_select(0, kept), data.R};
}

model::Params descend(const json& s, const model::Data& data, int64_t steps) {
  dynamics::DescentOptions options;
  options.step_size = s.at("step_size");
  options.steps = steps;
  options.samples = data.X.size(0);
  dynamics::Descent run(
      model::blocks_of(model::zero_init(s.at("H"), data.X.size(1), data.X.size(2))),
      model::objective(data), options);
  run.run([](const auto&, const auto&) {});
  return model::params_of(run.parameters());
}

double squared_distance(const model::Params& a, const model::Params& b) {
  return ((a.W - b.W).square().sum() + (a.U - b.U).square().sum()).item<double>();
}

json measure(const json& s, int64_t n, uint64_t seed, const Context& context,
             const std::filesystem::path& folder) {
  const auto options = mixture_options(s);
  const auto data = model::mixture(n, options, seed, "train");
  const auto test = model::mixture(s.at("n_test"), options, seed, "test");
  const auto start = model::zero_init(s.at("H"), options.T, options.d);
  const auto whole = train({.data = data,
                            .test = test,
                            .start = start,
                            .step_size = s.at("step_size"),
                            .steps = n,
                            .seed = seed},
                           context, folder);
  const int64_t left_out = std::min(s.at("left_out").get<int64_t>(), n);
  double sum = 0;
  for (int64_t i = 0; i < left_out; ++i)
    sum += squared_distance(whole.params, descend(s, without(data, i), n));
  const double mean_square = sum / static_cast<double>(left_out);
  return {{"mean_square", mean_square},
          {"relative", mean_square / squared_distance(whole.params, start)},
          {"gap", whole.summary.at("gap")}};
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const auto sweep =
      run_sweep(context, "n", numbers(s.at("n")), [&](double n, uint64_t seed, const auto& folder) {
        return measure(s, static_cast<int64_t>(n), seed, context, folder);
      });
  auto tables = sweep_tables(sweep, "Leave-one-out stability, K = n", "samples n", "value",
                             {{"mean_square", "mean ||theta - theta^(-i)||^2", ""},
                              {"relative", "the same over ||theta - theta_0||^2", ""}});
  tables.push_back(
      mean_table(sweep, "Gap beside it", "samples n", {{"gap", "test loss - training loss"}}));
  return tables;
}

}  // namespace

Experiment e8() {
  return {.paper = kPaper,
          .name = "e8",
          .title = "Leave-one-out stability",
          .claim =
              "Generalisation is proved by on-average stability: parameters change little if "
              "one sample is left out of training with the same start.",
          .limits = "the constants of the stability bound.",
          .times = {"1 s", "2 s", "1 h"},
          .settings = settings,
          .choices = mixture_choices(),
          .run = run};
}

}  // namespace kktorch::multihead
