// e9: concentration of the empirical tangent kernel about its limit.
#include "ops/shk.h"
#include "train/dynamics/ntk.h"
#include "train/experiments/shallow/common.h"
#include "train/experiments/shallow/experiments.h"
#include "train/experiments/sweep.h"
#include "train/loop/seed_stream.h"

namespace kktorch::shallow {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  return {{"m", by_preset<std::vector<int>>(preset, {16, 32, 64}, {16, 32, 64, 128, 256, 512, 1024},
                                            {16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192})},
          {"T", 16},
          {"d", 8},
          {"probes", by_preset(preset, 16, 128, 128)},
          {"pool", by_preset(preset, 1024, 1 << 14, 1 << 16)},
          {"seeds", by_preset(preset, 2, 4, 10)}};
}

/// Means over heads of the three products of features, accumulated over some heads at a time.
dynamics::Kernels kernels_of(const model::Data& data, const at::Tensor& W, const at::Tensor& U) {
  constexpr int64_t kHeads = 1024;
  const int64_t m = W.size(0), N = data.X.size(0);
  dynamics::Kernels sum;
  for (int block = 0; block < 3; ++block)
    sum.blocks.push_back(torch::zeros({N, N}, torch::kDouble));
  for (int64_t i = 0; i < m; i += kHeads) {
    const int64_t count = std::min(kHeads, m - i);
    const auto [h, B, G] =
        shk_features(data.X, data.q, W.narrow(0, i, count), U.narrow(0, i, count));
    int block = 0;
    for (const auto& t : {h, B.flatten(1), G.flatten(1)})
      sum.blocks[block++] += torch::matmul(t, t.t()) / static_cast<double>(m);
  }
  sum.blocks[2] *= torch::matmul(data.q, data.q.t());
  return sum;
}

dynamics::Kernels limit(const json& s, const model::Data& data, uint64_t seed) {
  const int64_t pool = s.at("pool"), d = s.at("d");
  auto generator = generator_of(seed, "kernel pool");
  const auto W = torch::randn({pool, d, d}, generator, torch::kDouble);
  const auto U = torch::randn({pool, d}, generator, torch::kDouble);
  return kernels_of(data, W, U);
}

json measure(const json& s, int64_t m, uint64_t seed) {
  const at::NoGradGuard no_grad;
  const auto data =
      model::clipped_normal(s.at("probes"), s.at("T"), s.at("d"), generator_of(seed, "probes"));
  const auto phi = model::symmetric_init(m, s.at("d"), seed);
  const auto reference = limit(s, data, seed), kernels = kernels_of(data, phi.W, phi.U);
  const auto [smallest, largest, rank] = dynamics::spectrum(kernels.total());
  return {{"c", dynamics::drift(kernels.blocks[0], reference.blocks[0])},
          {"u", dynamics::drift(kernels.blocks[1], reference.blocks[1])},
          {"w", dynamics::drift(kernels.blocks[2], reference.blocks[2])},
          {"all", dynamics::drift(kernels.total(), reference.total())},
          {"smallest", smallest},
          {"largest", largest},
          {"rank", rank}};
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const auto sweep =
      run_sweep(context, "m", numbers(s.at("m")), [&](double m, uint64_t seed, const auto&) {
        return measure(s, static_cast<int64_t>(m), seed);
      });
  auto tables = sweep_tables(sweep, "Distance of the tangent kernel from its limit", "heads m",
                             "||K^(m) - K|| / ||K||",
                             {{"all", "whole kernel", "-1/2"},
                              {"c", "block c", "-1/2"},
                              {"u", "block U", "-1/2"},
                              {"w", "block W", "-1/2"}},
                             "The limit is the mean over a pool of independent heads; m heads in "
                             "symmetric pairs are a mean of m/2 draws.");
  tables.push_back(mean_table(sweep, "Spectrum of the kernel", "heads m",
                              {{"smallest", "smallest eigenvalue"},
                               {"largest", "largest eigenvalue"},
                               {"rank", "effective rank"}}));
  return tables;
}

}  // namespace

Experiment e9() {
  return {
      .paper = kPaper,
      .name = "e9",
      .title = "Concentration of the tangent kernel",
      .claim = "The empirical tangent kernel of m heads lies within order m^(-1/2) of its limit.",
      .limits =
          "that the kernel is positive definite, which the theory does not need; the "
          "smallest eigenvalue is only printed.",
      .times = {"1 s", "10 s", "10 min"},
      .settings = settings,
      .run = run};
}

}  // namespace kktorch::shallow
