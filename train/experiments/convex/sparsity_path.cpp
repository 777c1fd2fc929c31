// sparsity_path: which tokens convex attention keeps as the penalty falls, on planted data.
//
//     y_i = sum_{k in S} V_k' x_ik + 0.1 noise        |S| = 4 of 20 tokens, x and V Gaussian
//     min sum_i |A_i - y_i|^2 / 2 + beta sum_lk |z_lk|        beta = rho beta_max
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "ops/convex_attention.h"
#include "ops/convex_solver.h"
#include "train/experiments/context.h"
#include "train/experiments/convex/experiments.h"
#include "train/loop/seed_stream.h"

namespace kktorch::convex {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  return {{"samples", 400},
          {"test_samples", 400},
          {"tokens", 20},
          {"width", 4},
          {"outputs", 3},
          {"planted", 4},
          {"noise", 0.1},
          {"points", 31},
          {"decades", 3},
          {"tolerance", 1e-6},
          {"seeds", by_preset(preset, 2, 5, 20)}};
}

struct Data {
  at::Tensor X, Y, test_X, test_Y;
  std::vector<int64_t> planted;  // ascending
};

Data draw(const json& s, uint64_t seed) {
  SeedStream stream(seed, "sparsity_path");
  auto generator = at::detail::createCPUGenerator(stream.next());
  const auto number = [&](const char* name) { return s.at(name).get<int64_t>(); };
  const auto normal = [&](at::IntArrayRef size) {
    return torch::randn(size, generator, torch::kDouble);
  };
  const int64_t n = number("tokens"), d = number("width"), c = number("outputs");
  auto tokens = stream.permutation(n);
  tokens.resize(number("planted"));
  std::sort(tokens.begin(), tokens.end());
  auto V = torch::zeros({1, c, n, d}, torch::kDouble);
  for (const int64_t k : tokens) V.select(2, k).copy_(normal({1, c, d}));
  const auto make = [&](int64_t count, at::Tensor& X, at::Tensor& Y) {
    X = normal({count, n, d});
    Y = convex_predict(X, V) + s.at("noise").get<double>() * normal({count, c});
  };
  Data data;
  data.planted = tokens;
  make(number("samples"), data.X, data.Y);
  make(number("test_samples"), data.test_X, data.test_Y);
  return data;
}

std::vector<double> rhos(const json& s) {
  std::vector<double> values;
  const int64_t points = s.at("points");
  for (int64_t k = 0; k < points; ++k)
    values.push_back(std::pow(10., -s.at("decades").get<double>() * static_cast<double>(k) /
                                       static_cast<double>(points - 1)));
  return values;
}

double half_loss(const at::Tensor& X, const at::Tensor& Y, const at::Tensor& Z) {
  return (convex_predict(X, Z) - Y).square().sum().item<double>() / 2;
}

json point_of(const Data& data, const ConvexResult& r) {
  const auto size = r.Z.norm(2, {-1});  // [1, c, n]
  const auto active = size.gt(0).flatten(0, 1).any(0);
  int64_t found = 0;
  for (const int64_t k : data.planted) found += active[k].item<bool>();
  const auto count = active.sum().item<int64_t>();
  const auto tokens = size.sum(0).sum(0);
  std::vector<double> planted;
  auto others = tokens.clone();
  for (const int64_t k : data.planted) {
    planted.push_back(tokens[k].item<double>());
    others[k] = 0;
  }
  return {{"active tokens", count},
          {"norms of planted tokens", planted},
          {"largest norm of others", others.max().item<double>()},
          {"iterations", r.iterations},
          {"screened share", static_cast<double>(r.screened) / static_cast<double>(size.numel())},
          {"active groups", size.gt(0).sum().item<int64_t>()},
          {"planted tokens among them", found},
          {"exact", found == count && count == static_cast<int64_t>(data.planted.size()) ? 1 : 0},
          {"penalty", size.sum().item<double>()},
          {"objective", r.F},
          {"gap", r.gap / r.F},
          {"train loss", half_loss(data.X, data.Y, r.Z) / static_cast<double>(data.X.size(0))},
          {"test loss",
           half_loss(data.test_X, data.test_Y, r.Z) / static_cast<double>(data.test_X.size(0))},
          {"reads", r.reads}};
}

/// Reads of the samples and seconds along the path, with and without warm starts and screening.
json work_of(const Data& data, const std::vector<double>& path, const ConvexOptions& options) {
  json work;
  const double top = beta_max(data.X, data.Y, options);
  for (const bool warm : {true, false})
    for (const bool screened : {true, false}) {
      auto own = options;
      if (!screened) own.screen_every = 0;
      int64_t count = 0;
      const auto start = std::chrono::steady_clock::now();
      for (const double rho : path) {
        const auto r = solve(data.X, data.Y, rho * top, own);
        count += r.reads;
        if (!warm) continue;
        own.Z0 = r.Z;
        if (r.lip > 0) own.lip = r.lip;
      }
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      work[fmt::format("{}, {}", warm ? "warm" : "cold", screened ? "screened" : "all groups")] = {
          {"reads", count}, {"seconds", taken.count()}};
    }
  return work;
}

json solve_seed(const json& s, uint64_t seed) {
  const auto data = draw(s, seed);
  ConvexOptions options;
  options.tol_rel = s.at("tolerance");
  json points = json::array();
  for (const auto& r : solve_path(data.X, data.Y, rhos(s), options))
    points.push_back(point_of(data, r));
  stop_if_interrupted();
  return {{"points", points}, {"work", work_of(data, rhos(s), options)}, {"planted", data.planted}};
}

/// Norms of the planted tokens and of the largest other one, of the first seed.
ResultTable norm_table(const json& found, const std::vector<double>& path) {
  ResultTable table = {
      .title = "Regularisation path: norms of the tokens",
      .columns = {"token"},
      .rows = {},
      .note =
          "Sum over outputs of |z|, of the planted tokens and of the largest "
          "other one. First seed.",
      .figure = Figure{.axis = "sum of |z|", .across = "1/ρ", .form = "log-curves", .only = true}};
  for (const double rho : path) table.columns.push_back(fmt::format("{:.4g}", 1 / rho));
  const std::vector<int64_t> planted = found.at("planted");
  for (size_t a = 0; a <= planted.size(); ++a) {
    const bool is_planted = a < planted.size();
    std::vector<Cell> row = {is_planted ? fmt::format("token {}, planted", planted[a])
                                        : "largest of the others"};
    for (const auto& point : found.at("points"))
      row.push_back(number_cell(is_planted ? point.at("norms of planted tokens")[a].get<double>()
                                           : point.at("largest norm of others").get<double>(),
                                "{:.3g}"));
    table.rows.push_back(row);
  }
  return table;
}

/// Largest relative violation of what holds along a path: F and the loss do not rise, the penalty
/// does not fall, as beta falls.
double worst_step(const json& points) {
  double worst = 0;
  for (size_t k = 1; k < points.size(); ++k) {
    const auto rise = [&](const char* name, double sign) {
      const double before = points[k - 1].at(name), after = points[k].at(name);
      return sign * (after - before) / std::max(std::abs(before), 1e-300);
    };
    worst = std::max({worst, rise("objective", 1), rise("train loss", 1),
                      points[k - 1].at("penalty") > 0 ? rise("penalty", -1) : 0.});
  }
  return worst;
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  std::vector<json> seeds;
  for (const auto seed : context.seeds())
    seeds.push_back(context.part(fmt::format("seed{}", seed),
                                 [&](const auto&) { return solve_seed(s, seed); }));
  const auto path = rhos(s);
  std::vector<std::string> columns = {"along the path"};
  for (size_t k = 0; k < path.size(); k += 5) columns.push_back(fmt::format("ρ {:.3g}", path[k]));
  const auto row = [&](const char* name, const char* format) {
    std::vector<Cell> cells = {name};
    for (size_t k = 0; k < path.size(); k += 5) {
      std::vector<double> values;
      for (const auto& found : seeds) values.push_back(found.at("points")[k].at(name));
      cells.push_back(spread_cell(values, format));
    }
    return cells;
  };
  std::vector<std::vector<Cell>> work;
  for (const auto& [name, first] : seeds.front().at("work").items()) {
    std::vector<double> reads, seconds;
    for (const auto& found : seeds) {
      reads.push_back(found.at("work").at(name).at("reads"));
      seconds.push_back(found.at("work").at(name).at("seconds"));
    }
    work.push_back({name, spread_cell(reads, "{:.0f}"), spread_cell(seconds, "{:.3f}")});
  }
  std::vector<double> steps, gaps;
  for (const auto& found : seeds) {
    steps.push_back(worst_step(found.at("points")));
    for (const auto& point : found.at("points")) gaps.push_back(point.at("gap"));
  }
  return {{.title = "Tokens and groups that are not zero",
           .columns = columns,
           .rows = {row("active tokens", "{:.1f}"), row("active groups", "{:.1f}"),
                    row("planted tokens among them", "{:.1f}")},
           .note = "Mean ± sd over seeds; 4 tokens are planted.",
           .figure = Figure{.axis = "number", .across = "penalty"}},
          {.title = "Loss per sample",
           .columns = columns,
           .rows = {row("train loss", "{:.3g}"), row("test loss", "{:.3g}")},
           .note = "Half squared error, without the penalty.",
           .figure = Figure{.axis = "loss", .across = "penalty", .logarithmic = true}},
          norm_table(seeds.front(), path),
          {.title = "Iterations and screening along the path",
           .columns = columns,
           .rows = {row("iterations", "{:.1f}"), row("screened share", "{:.2f}")},
           .note = "Share of the groups that the gap has ruled out before the end.",
           .figure = {}},
          {.title = "Reads of the samples for the whole path",
           .columns = {"start, groups", "reads", "seconds"},
           .rows = work,
           .note = "Warm: every solve starts from the one before.",
           .figure = {}},
          {.title = "Checks",
           .columns = {"quantity", "largest"},
           .rows = {{"certified relative gap", largest_cell(gaps, "{:.1e}")},
                    {"step against the order along the path", largest_cell(steps, "{:.1e}")}},
           .note = "As the penalty falls, objective and loss do not rise and the sum of norms does "
                   "not fall, up to the gaps. The active set need not be monotone.",
           .figure = {}}};
}

}  // namespace

Experiment sparsity_path() {
  return {.paper = kPaper,
          .name = "sparsity_path",
          .title = "Tokens that convex attention keeps",
          .claim =
              "The convex program of attention is a group lasso over token positions, so a "
              "larger penalty keeps fewer tokens; checked here: where four of twenty tokens "
              "matter, certified solutions along the path keep those.",
          .limits =
              "that attention by content is sparse: the weights are shared by all samples and "
              "select positions. The data are Gaussian and planted, the active set need not "
              "be monotone in the penalty, and the penalty is not scale-free.",
          .times = {"5 s", "10 s", "1 min"},
          .settings = settings,
          .run = run};
}

}  // namespace kktorch::convex
