// e8: growth of Jacobians with the length, before any training.
#include <fmt/format.h>

#include <cmath>

#include "ops/indrnn.h"
#include "ops/shk.h"
#include "train/experiments/shallow/common.h"
#include "train/experiments/shallow/experiments.h"
#include "train/experiments/sweep.h"
#include "train/loop/seed_stream.h"

namespace kktorch::shallow {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  return {{"T",
           by_preset<std::vector<int>>(preset, {4, 8, 16}, {4, 8, 16, 32, 64}, {4, 8, 16, 32, 64})},
          {"w0", {0.5, 0.9, 1.1}},
          {"m", by_preset(preset, 16, 256, 256)},
          {"d", 8},
          {"u_scale", 0.05},
          {"inputs", by_preset(preset, 20, 200, 200)},
          {"seeds", by_preset(preset, 2, 2, 10)}};
}

std::string key_of(double w0) { return fmt::format("recurrent_{}", w0); }

json measure(const json& s, int64_t T, uint64_t seed) {
  const at::NoGradGuard no_grad;
  const int64_t n = s.at("inputs"), d = s.at("d"), m = s.at("m");
  auto generator = generator_of(seed, "probes", static_cast<uint64_t>(T));
  const auto normal = torch::randn({n, T, d}, generator, torch::kDouble);
  const auto X = normal / normal.norm(2, -1, true);
  const auto u = s.at("u_scale").get<double>() * torch::randn({m, d}, generator, torch::kDouble);
  const auto sign = 2 * torch::randint(2, {m}, generator, torch::kDouble) - 1;
  json result;
  for (const auto& w0 : s.at("w0")) {
    const auto e = indrnn_jac(X, w0.get<double>() * sign, u);
    const auto [sup, rms] = model::deviation(e);
    result[key_of(w0)] = rms;
    result[key_of(w0) + "_sup"] = sup;
  }
  const auto phi = model::symmetric_init(m, d, seed);
  const auto q = X.select(1, T - 1).contiguous();
  const auto [h, B, G] = shk_features(X, q, phi.W, phi.U);
  const auto norms = G.norm(2, -1) * q.norm(2, 1).unsqueeze(1);
  const auto [sup, rms] = model::deviation(norms);
  result["transformer"] = rms;
  result["transformer_sup"] = sup;
  return result;
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const auto sweep =
      run_sweep(context, "T", numbers(s.at("T")), [&](double T, uint64_t seed, const auto&) {
        return measure(s, static_cast<int64_t>(T), seed);
      });
  std::vector<Statistic> rms, sup;
  for (const double w0 : numbers(s.at("w0"))) {
    const std::string theory = w0 < 1 ? "bounded in T" : "bound grows exponentially";
    rms.push_back({key_of(w0), fmt::format("recurrent, |w| = {}", w0), theory, false});
    sup.push_back({key_of(w0) + "_sup", fmt::format("recurrent, |w| = {}", w0), theory, false});
  }
  rms.push_back({"transformer", "transformer", "bounded, no T"});
  sup.push_back({"transformer_sup", "transformer", "bounded, no T"});
  auto tables = sweep_tables(sweep, "Root mean square over heads and inputs", "length T",
                             "|dh/dw|, ||dh/dW||", rms,
                             "Power laws are not fitted where the bound grows exponentially.");
  append(tables, sweep_tables(sweep, "Largest over heads and inputs", "length T",
                              "|dh/dw|, ||dh/dW||", sup));
  return tables;
}

}  // namespace

Experiment e8() {
  return {.paper = kPaper,
          .name = "e8",
          .title = "Growth of Jacobians with the length",
          .claim =
              "The derivative of a recurrent head in its weight is bounded by a sum of powers "
              "of |w|, finite for all T only below |w| = 1; that of an attention head is "
              "bounded without T.",
          .limits =
              "that recurrent Jacobians always explode: it depends on whether |w| passes the "
              "cutoff, and saturation of tanh limits it.",
          .times = {"1 s", "2 s", "20 s"},
          .settings = settings,
          .run = run};
}

}  // namespace kktorch::shallow
