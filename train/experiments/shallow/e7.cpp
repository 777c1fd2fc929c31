// e7: autoregressive sequences, shallow transformer against a recurrent network.
#include <cmath>

#include "ops/indrnn.h"
#include "ops/shk.h"
#include "train/common/error.h"
#include "train/dynamics/ar_data.h"
#include "train/experiments/shallow/common.h"
#include "train/experiments/shallow/experiments.h"
#include "train/experiments/sweep.h"
#include "train/loop/metrics.h"
#include "train/loop/seed_stream.h"

namespace kktorch::shallow {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

using dynamics::Block;
using dynamics::Descent;
using dynamics::Evaluation;

ordered_json settings(Preset preset) {
  return {{"lags",
           by_preset<std::vector<int>>(preset, {1, 2, 4}, {1, 4, 16}, {1, 2, 4, 8, 16, 32, 64})},
          {"extra_window", 0},
          {"windows", "independent"},
          {"alpha", 0.9},
          {"noise_variance", 0.1},
          {"position", "raw"},
          {"position_pairs", 8},
          {"n", by_preset(preset, 40, 500, 5000)},
          {"n_validation", by_preset(preset, 40, 500, 5000)},
          {"m", by_preset(preset, 8, 64, 64)},
          {"steps", by_preset(preset, 32, 1000, 2000)},
          {"w0", 0.9},
          {"u_scale", 1.0},
          {"rho", 0.0},
          {"seeds", by_preset(preset, 2, 2, 20)}};
}

struct Split {
  model::Data train, validation;
};

/// A model in training: its blocks, objective, outputs, and the norm of its Jacobian by sample.
struct Contender {
  std::string name;
  std::vector<Block> blocks;
  dynamics::Objective objective;
  std::function<at::Tensor(const std::vector<at::Tensor>&)> validate, jacobian;
};

/// Radius of the balls of all blocks times sqrt m; none for rho = 0.
double radius_of(const json& s) {
  const double rho = s.at("rho");
  return rho == 0 ? dynamics::kUnbounded : rho;
}

Contender transformer(const json& s, const Split& split, uint64_t seed) {
  const double rho = radius_of(s);
  const auto phi0 = model::symmetric_init(s.at("m"), split.train.X.size(2), seed);
  return {"transformer", model::blocks_of(phi0, {rho, rho, rho}), model::objective(split.train),
          [&](const auto& b) {
            return shk_output(split.validation.X, split.validation.q, b[0], b[1], b[2]);
          },
          [&](const auto& b) {
            const auto [h, B, G] = shk_features(split.train.X, split.train.q, b[0], b[1]);
            const auto scaled = (b[2].view({1, -1, 1}) * G).flatten(1).norm(2, 1);
            return scaled * split.train.q.norm(2, 1) / std::sqrt(static_cast<double>(b[2].size(0)));
          }};
}

Contender recurrent(const json& s, const Split& split, uint64_t seed) {
  const int64_t m = s.at("m"), d = split.train.X.size(2);
  auto generator = generator_of(seed, "recurrent init", static_cast<uint64_t>(m));
  const auto sign = [&] { return 2 * torch::randint(2, {m / 2}, generator, torch::kDouble) - 1; };
  const auto w = s.at("w0").get<double>() * sign(), c = sign();
  const auto u =
      s.at("u_scale").get<double>() * torch::randn({m / 2, d}, generator, torch::kDouble);
  const double radius = radius_of(s) / std::sqrt(static_cast<double>(m));
  const auto objective = [&](const std::vector<at::Tensor>& b, const at::Tensor&) -> Evaluation {
    auto [loss, f, gw, gu, gc] = indrnn_loss_grad(split.train.X, split.train.y, b[0], b[1], b[2]);
    return {loss.item<double>(), f, {gw, gu, gc}};
  };
  return {"recurrent",
          {{"w", torch::cat({w, w}), radius},
           {"u", torch::cat({u, u}), radius},
           {"c", torch::cat({c, -c}), radius}},
          objective,
          [&](const auto& b) { return indrnn_forward(split.validation.X, b[0], b[1], b[2]); },
          [&](const auto& b) {
            return (b[2] * indrnn_jac(split.train.X, b[0], b[1])).norm(2, 1) /
                   std::sqrt(static_cast<double>(b[2].size(0)));
          }};
}

/// Trains one model; results under its name.
void add_run(const json& s, const Split& split, const Contender& contender,
             const std::filesystem::path& folder, json& result) {
  const int64_t steps = s.at("steps");
  dynamics::DescentOptions options;
  options.step_size = 1 / std::sqrt(static_cast<double>(steps));
  options.steps = steps;
  options.samples = split.train.X.size(0);
  options.loss_floor = variance(split.train.y);
  MetricsSink sink(folder / contender.name);
  std::filesystem::create_directories(folder / contender.name);
  sink.keep_until(-1, "step");
  double best = dynamics::kUnbounded, largest = 0, sum_of_largest = 0;
  int64_t evaluations = 0;
  Descent run(contender.blocks, contender.objective, options);
  run.run([&](const Descent& now, const Evaluation& e) {
    if (!is_logged(now.step(), steps)) return;
    const auto f = contender.validate(now.parameters());
    const double validation = (f - split.validation.y).square().mean().template item<double>();
    const auto jacobian = contender.jacobian(now.parameters());
    const double sup = jacobian.max().template item<double>();
    best = std::min(best, validation);
    largest = std::max(largest, sup);
    sum_of_largest += sup;
    ++evaluations;
    sink.append({{"step", now.step()},
                 {"train_loss", e.loss},
                 {"validation_mse", validation},
                 {"jacobian_sup", sup},
                 {"jacobian_mean", jacobian.mean().template item<double>()},
                 {"jacobian_q95", jacobian.quantile(0.95).template item<double>()}});
  });
  result[contender.name + "_mse"] = best;
  result[contender.name + "_mse_over_var"] = best / variance(split.validation.y);
  result[contender.name + "_jacobian"] = largest;
  result[contender.name + "_jacobian_mean"] = sum_of_largest / static_cast<double>(evaluations);
  result[contender.name + "_diverged"] = run.diverged() ? 1 : 0;
}

json measure(const json& s, int64_t lag, uint64_t seed, const std::filesystem::path& folder) {
  const at::NoGradGuard no_grad;
  const dynamics::ArOptions options{.lag = lag,
                                    .window = lag + 1 + s.at("extra_window").get<int64_t>(),
                                    .alpha = s.at("alpha"),
                                    .variance = s.at("noise_variance"),
                                    .position_pairs = s.at("position_pairs"),
                                    .position = s.at("position"),
                                    .sliding = s.at("windows") == "sliding"};
  const auto index = static_cast<uint64_t>(lag);
  const Split split{
      dynamics::ar_data(s.at("n"), options, generator_of(seed, "train", index)),
      dynamics::ar_data(s.at("n_validation"), options, generator_of(seed, "validation", index))};
  json result;
  add_run(s, split, transformer(s, split, seed), folder, result);
  add_run(s, split, recurrent(s, split, seed), folder, result);
  return result;
}

/// Curves of one of the two models.
std::vector<ResultTable> curves_of(Sweep sweep, const std::string& model) {
  for (auto& trial : sweep.folders)
    for (auto& folder : trial) folder /= model;
  return curve_tables(
      sweep, model, "lag L",
      {{"validation_mse", "validation error"}, {"jacobian_sup", "largest norm of the Jacobian"}});
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const auto sweep = run_sweep(context, "lag", numbers(s.at("lags")),
                               [&](double lag, uint64_t seed, const auto& folder) {
                                 return measure(s, static_cast<int64_t>(lag), seed, folder);
                               });
  const std::string channels =
      "Position channels: " + s.at("position").get<std::string>() + ", sinusoidal pairs.";
  auto tables =
      sweep_tables(sweep, "Smallest validation error", "lag L", "mean squared error",
                   {{"transformer_mse", "transformer", "roughly constant"},
                    {"recurrent_mse", "recurrent network", "better at small L, worse with L"}},
                   channels + " Bayes: 0.1; predicting zero: 0.526.");
  append(tables,
         sweep_tables(
             sweep, "Largest Jacobian over samples and logged steps", "lag L", "norm",
             {{"transformer_jacobian", "transformer, ||grad_W f||", "small"},
              {"transformer_jacobian_mean", "transformer, mean over steps", ""},
              {"recurrent_jacobian", "recurrent network, ||grad_w f||", "large and fluctuating"},
              {"recurrent_jacobian_mean", "recurrent network, mean over steps", ""}},
             channels));
  tables.push_back(mean_table(
      sweep, "Diverged runs", "lag L",
      {{"transformer_diverged", "transformer"}, {"recurrent_diverged", "recurrent network"}}));
  for (const auto* model : {"transformer", "recurrent"}) append(tables, curves_of(sweep, model));
  return tables;
}

}  // namespace

Experiment e7() {
  return {
      .paper = kPaper,
      .name = "e7",
      .title = "Autoregressive sequences: transformer against recurrent network",
      .claim =
          "The paper's picture: the recurrent network is better at small lags and degrades "
          "with the lag, the transformer is roughly constant; its Jacobian stays small.",
      .limits =
          "any bound of the theory: tokens are longer than 1, and nothing is projected (rho = 0). "
          "Lags, initialisation of the recurrent network, windows and the scale of the "
          "position channels are ours.",
      .times = {"1 s", "45 s", "12 h"},
      .settings = settings,
      .choices = {{"windows", {"independent", "sliding"}}, {"position", {"raw", "unit", "none"}}},
      .run = run};
}

}  // namespace kktorch::shallow
