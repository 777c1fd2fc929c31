// types: where gradient descent from W = 0 ends. Global: in the direction of the SVM of the optimal
// tokens. Local: of locally optimal ones. Not local: everything else, by reason.
//
// Descent runs on token coefficients: from W = 0, W_k = sum_it C_it x_it z_i^T, with
//     L = H C      H = (X X^T) o (Z Z^T)      C <- C - lr g / (|dW|_F + eps)      |dW|_F^2 = g^T H
//     g
// for g = d risk / d L: the cost of a step, (n T)^2, does not depend on the width.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "csrc/svm/operators.h"
#include "train/experiments/attention_svm/experiments.h"
#include "train/experiments/attention_svm/trials.h"
#include "train/loop/attention_descent.h"

namespace kktorch::attention_svm {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

struct Shape {
  int64_t n, T, d;
};

ordered_json settings(Preset preset) {
  using Shapes = std::vector<std::vector<int64_t>>;
  const Shapes all = {{4, 6, 2},  {4, 6, 4},   {4, 6, 10}, {4, 6, 50}, {2, 6, 10},
                      {8, 6, 10}, {12, 6, 10}, {4, 3, 10}, {4, 12, 10}};
  return {{"shapes", by_preset<Shapes>(preset, {{4, 6, 2}, {4, 6, 10}},
                                       {{4, 6, 2}, {4, 6, 4}, {4, 6, 10}, {4, 6, 50}}, all)},
          {"trials", by_preset(preset, 10, 200, 1000)},
          {"iterations", by_preset(preset, 3000, 3000, 3000)},
          {"learning_rate", 0.1},
          {"ngd_eps", kNgdEps},
          {"saturated", 0.99},
          {"cosine", 0.97},
          {"seeds", 1}};
}

/// H [nT, nT].
std::vector<double> gram(const Problem& p) {
  const int64_t N = p.n * p.T;
  const auto dot = [&](const double* a, const double* b) {
    double sum = 0;
    for (int64_t c = 0; c < p.d; ++c) sum += a[c] * b[c];
    return sum;
  };
  std::vector<double> H(N * N);
  for (int64_t j = 0; j < N; ++j)
    for (int64_t k = 0; k < N; ++k)
      H[j * N + k] = dot(p.x.data() + j * p.d, p.x.data() + k * p.d) *
                     dot(p.z.data() + j / p.T * p.d, p.z.data() + k / p.T * p.d);
  return H;
}

std::vector<double> times(const std::vector<double>& H, const std::vector<double>& v) {
  std::vector<double> product(v.size());
  for (size_t j = 0; j < v.size(); ++j)
    for (size_t k = 0; k < v.size(); ++k) product[j] += H[j * v.size() + k] * v[k];
  return product;
}

struct Ending {
  std::vector<double> W;
  csrc::AttentionState state;
};

Ending descend(const Problem& problem, const json& settings) {
  const auto model = problem.model();
  const auto H = gram(problem);
  const double lr = settings.at("learning_rate"), eps = settings.at("ngd_eps");
  const int64_t iterations = settings.at("iterations"), d = problem.d;
  std::vector<double> coefficients(problem.n * problem.T), logits(problem.n * problem.T);
  Ending ending;
  csrc::evaluate_attention(model, logits.data(), ending.state);
  for (int64_t k = 0; k < iterations; ++k) {
    const auto& g = ending.state.g;
    const auto change = times(H, g);
    double square = 0;
    for (size_t j = 0; j < g.size(); ++j) square += g[j] * change[j];
    const double step = lr / (std::sqrt(std::max(0.0, square)) + eps);
    for (size_t j = 0; j < g.size(); ++j) {
      coefficients[j] -= step * g[j];
      logits[j] -= step * change[j];
    }
    csrc::evaluate_attention(model, logits.data(), ending.state);
  }
  ending.W.resize(d * d);
  for (size_t j = 0; j < coefficients.size(); ++j)
    for (int64_t a = 0; a < d; ++a)
      for (int64_t b = 0; b < d; ++b)
        ending.W[a * d + b] +=
            coefficients[j] * problem.x[j * d + a] * problem.z[j / problem.T * d + b];
  return ending;
}

/// Every pair of Att-SVM(opt) at margin 1.
bool all_support(const Problem& problem, const std::vector<int64_t>& alpha,
                 const csrc::SvmResult& svm) {
  const auto sets = problem.sets();
  const auto pairs = csrc::pairs_of_alpha(sets.row_ptr, sets.Q, alpha.data());
  std::vector<double> margins(pairs.inequality.size());
  csrc::pair_margins(sets, pairs.anchor, pairs.inequality, svm.w.data(), margins.data());
  return *std::max_element(margins.begin(), margins.end()) <= 1 + 1e-6;
}

const char* type_of(const Problem& problem, const Ending& ending, const json& settings,
                    const std::vector<int64_t>& optimal) {
  double least = 1;
  for (int64_t i = 0; i < problem.n; ++i)
    least = std::min(least, ending.state.s[i * problem.T + ending.state.argmax[i]]);
  if (!(least > settings.at("saturated").get<double>())) return "unsaturated";
  const auto svm = solve(problem, ending.state.argmax);
  if (svm.status != csrc::SvmStatus::kOptimal) return "unresolved";
  const auto local = local_optimality(problem, ending.state.argmax, svm, ending.state.gamma);
  if (local == csrc::LocalOptimality::kNo) return "not locally optimal";
  if (local == csrc::LocalOptimality::kUnresolved) return "unresolved";
  if (!(cosine(ending.W, svm.w) > settings.at("cosine").get<double>())) return "cosine";
  return ending.state.argmax == optimal ? "global" : "local";
}

json trial(const json& settings, const Shape& shape, int64_t seed) {
  const auto problem = draw_linear(seed, shape.n, shape.T, shape.d);
  const auto optimal = problem.optimal();
  const auto svm = solve(problem, optimal);
  const bool feasible = svm.status == csrc::SvmStatus::kOptimal;
  return {{"type", type_of(problem, descend(problem, settings), settings, optimal)},
          {"feasible", feasible},
          {"unknown", svm.status == csrc::SvmStatus::kNotCertified},
          {"b1", feasible && all_support(problem, optimal, svm)}};
}

struct Group {
  Shape shape;
  std::vector<json> trials;

  int64_t count(const std::string& type) const {
    return std::count_if(trials.begin(), trials.end(),
                         [&](const json& trial) { return trial.at("type") == type; });
  }
  std::string name() const { return fmt::format("n={} T={} d={}", shape.n, shape.T, shape.d); }
};

ResultTable share_table(const std::vector<Group>& groups) {
  ResultTable table{
      .title = "Shares of the runs",
      .columns = {"n, T, d", "opt feasible", "B.1", "Global", "Local (incl. Global)", "Not local"},
      .rows = {},
      .note =
          "B.1: every other token is a support token of Att-SVM(opt). reference (1000 trials, n=4, "
          "T=6; opt feasible, B.1, Global, Local, Not local): d=2: .50, 0, .32, .56, .44; d=4: 1, "
          "0, .69, .99, .01; d=10: 1, 0, .89, .99, .01; d=50: 1, .15, .99, 1.00, 0. The paper's "
          "percentages are not public; only trends compare.",
      .figure = {}};
  for (const auto& group : groups) {
    const auto n = static_cast<int64_t>(group.trials.size());
    const int64_t global = group.count("global"), local = global + group.count("local");
    table.rows.push_back({group.name(), share_cell(count_true(group.trials, "/feasible"), n),
                          share_cell(count_true(group.trials, "/b1"), n), share_cell(global, n),
                          share_cell(local, n), share_cell(n - local, n)});
  }
  return table;
}

ResultTable phase_table(const std::vector<Group>& groups) {
  ResultTable table{
      .title = "Where descent from W = 0 ends",
      .columns = {"ending"},
      .rows = {},
      .note =
          "Not local is split by its first reason: the softmax is not saturated, "
          "alpha is not locally optimal, local optimality is unresolved, or the "
          "cosine with Wmm is at most 0.97.",
      .figure = Figure{
          .axis = "share of the runs", .across = "inputs n, tokens T, width d", .form = "stacked"}};
  for (const auto& group : groups) table.columns.push_back(group.name());
  for (const auto& [type, title] : std::initializer_list<std::pair<const char*, const char*>>{
           {"global", "Global"},
           {"local", "Local, not global"},
           {"not locally optimal", "not locally optimal"},
           {"unsaturated", "unsaturated"},
           {"cosine", "cosine at most 0.97"},
           {"unresolved", "unresolved"}}) {
    auto& row = table.rows.emplace_back(1, title);
    for (const auto& group : groups)
      row.push_back(share_cell(group.count(type), static_cast<int64_t>(group.trials.size())));
  }
  return table;
}

std::vector<ResultTable> run(Context& context) {
  const json settings = context.settings();
  const auto first = static_cast<int64_t>(context.seeds().front()) - 1;
  std::vector<Group> groups;
  for (const auto& s : settings.at("shapes")) {
    Group group{.shape = {s.at(0), s.at(1), s.at(2)}, .trials = {}};
    group.trials = trials_in_blocks(
        context, fmt::format("n{}-T{}-d{}", group.shape.n, group.shape.T, group.shape.d), first,
        first + settings.at("trials").get<int64_t>(),
        [&](int64_t seed) { return trial(settings, group.shape, seed); });
    groups.push_back(std::move(group));
  }
  return {share_table(groups), phase_table(groups)};
}

}  // namespace

Experiment types() {
  return {.paper = kPaper,
          .name = "types",
          .title = "Global, local and other ends of gradient descent",
          .claim =
              "The paper's bar charts show descent ending globally more often with the width, less "
              "often with inputs and tokens; checked here with definitions of ours and the "
              "reasons of every other end: Not local nearly vanishes once the SVM of the optimal "
              "tokens is feasible, long before condition B.1 holds.",
          .limits =
              "the percentages of the paper, which neither code nor numbers are public for; or "
              "that B.1 explains global convergence.",
          .times = {"1 s", "4 s", "100 s"},
          .settings = settings,
          .run = run};
}

}  // namespace kktorch::attention_svm
