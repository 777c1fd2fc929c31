// prompt: max-margin token selection by a tuned prompt (arXiv 2306.13596), on its four constructed
// data sets.
//
//     f(X) = <X v, softmax(X W^T p)>      SVM: min |p| s.t. p.(k_alpha - k_t) >= 1, keys k_t = W
//     x_t
//
// The SVM of a prompt is the attention SVM of the keys with dz = 1, z = 1.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "train/experiments/attention_svm/experiments.h"
#include "train/experiments/attention_svm/trials.h"
#include "train/loop/attention_descent.h"

namespace kktorch::attention_svm {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using Numbers = std::vector<double>;

constexpr double kStarts[] = {1, 0.5, 0, -0.5, -1, -1.5};

ordered_json settings(Preset preset) {
  return {{"iterations", by_preset(preset, 200, 1000, 1000)},
          {"learning_rate", 0.1},
          {"ngd_eps", 1e-9},
          {"every", 20},
          {"joint_iterations", by_preset(preset, 200, 1000, 10000)},
          {"seeds", 1}};
}

/// Tokens with keys and scores: input i has the keys key[i T ...], and scores Y x.v.
struct PromptData {
  int64_t n, T, d;
  Numbers key;    // [n T d]
  Numbers score;  // [n T]
  csrc::MarginLoss loss = csrc::MarginLoss::kLogistic;

  csrc::TokenSetsView<double> sets() const {
    return {.x = key.data(),
            .z = ones.data(),
            .row_ptr = row_ptr.data(),
            .tok = nullptr,
            .N = n * T,
            .dx = d,
            .Q = n,
            .dz = 1};
  }
  Numbers ones = Numbers(n, 1.0);
  std::vector<int64_t> row_ptr = regular_row_ptr(n, T);
};

double norm(const Numbers& v) {
  return std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0));
}

csrc::SvmResult solve_prompt(const PromptData& data, const std::vector<int64_t>& alpha,
                             const Numbers* h = nullptr) {
  const auto sets = data.sets();
  csrc::SvmSettings settings;
  settings.method = csrc::SvmMethod::kOracle;
  return csrc::solve_svm({.sets = sets,
                          .pairs = csrc::pairs_of_alpha(sets.row_ptr, sets.Q, alpha.data()),
                          .h = h ? h->data() : nullptr},
                         settings);
}

/// Gradient of the risk with respect to the prompt, by the identity of the logits. Also the
/// probabilities.
Numbers prompt_gradient(const PromptData& data, const Numbers& p, Numbers& s) {
  Numbers gradient(data.d);
  s.assign(data.n * data.T, 0);
  for (int64_t i = 0; i < data.n; ++i) {
    const int64_t begin = i * data.T;
    Numbers logit(data.T);
    for (int64_t t = 0; t < data.T; ++t)
      logit[t] =
          std::inner_product(p.begin(), p.end(), data.key.begin() + (begin + t) * data.d, 0.0);
    const double top = *std::max_element(logit.begin(), logit.end());
    double total = 0, mean = 0;
    for (int64_t t = 0; t < data.T; ++t) total += s[begin + t] = std::exp(logit[t] - top);
    for (int64_t t = 0; t < data.T; ++t) {
      s[begin + t] /= total;
      mean += s[begin + t] * data.score[begin + t];
    }
    const double weight = csrc::margin_loss_weight(data.loss, mean) / static_cast<double>(data.n);
    for (int64_t t = 0; t < data.T; ++t) {
      const double g = weight * s[begin + t] * (mean - data.score[begin + t]);
      for (int64_t c = 0; c < data.d; ++c) gradient[c] += g * data.key[(begin + t) * data.d + c];
    }
  }
  return gradient;
}

/// The prompt after every `every` updates: normalised descent, or plain with eps < 0.
std::vector<Numbers> descend(const PromptData& data, Numbers p, int64_t iterations, int64_t every,
                             double lr, double eps) {
  std::vector<Numbers> path;
  Numbers s;
  for (int64_t k = 0; k <= iterations; ++k) {
    if (k % every == 0) path.push_back(p);
    const auto gradient = prompt_gradient(data, p, s);
    if (eps >= 0)
      ngd_update(p, gradient, lr, eps);
    else
      for (size_t c = 0; c < p.size(); ++c) p[c] -= lr * gradient[c];
  }
  return path;
}

/// Scores are the third coordinate; keys the first two.
PromptData planar(int64_t n, int64_t T, const Numbers& tokens) {
  PromptData data{.n = n, .T = T, .d = 2, .key = {}, .score = {}};
  for (int64_t j = 0; j < n * T; ++j) {
    data.key.insert(data.key.end(), {tokens[3 * j], tokens[3 * j + 1]});
    data.score.push_back(tokens[3 * j + 2]);
  }
  return data;
}

PromptData single_input(bool local) {
  return planar(1, 3, {-0.1, 1, 1, 1, 0, 0.9, 0, 0, local ? 0.0 : 0.9});
}

PromptData multi_input() {
  auto x = draw_normal(0, {3, 7, 3}, 0.2);
  for (int64_t j = 0; j < 21; ++j) {
    const int64_t t = j % 7;
    x[3 * j] += t == 0 ? 1 : t < 4 ? -1 : -0.5;
    x[3 * j + 1] += t == 0 ? 0 : t < 4 ? 1 : -0.5;
    x[3 * j + 2] = t == 0 ? 1 : 0.5;
  }
  return planar(3, 7, x);
}

PromptData diff_loss(double c, csrc::MarginLoss loss) {
  PromptData data = planar(2, 2, {0, 0, 0, 1, 1, c, 0, 0, 0, 1, -1, 1});
  data.loss = loss;
  return data;
}

double half_square(const csrc::SvmResult& svm) { return norm(svm.w) * norm(svm.w) / 2; }

json paths_json(const std::vector<Numbers>& path) {
  json points = json::array();
  for (const auto& p : path) points.push_back(p);
  return points;
}

// ---- the SVMs

/// Keys of the joint problem: W = identity, tokens (0, 0) and the given one, of which the given one
/// is selected.
PromptData joint_keys(const std::array<double, 2>& third) {
  return {.n = 3,
          .T = 2,
          .d = 2,
          .key = {0, 0, 1, 1, 0, 0, 1, -1, 0, 0, third[0], third[1]},
          .score = Numbers(6, 0)};
}

json golden() {
  const auto single = single_input(false);
  const auto joint = joint_keys({0.5, 1});
  // Inputs that are no support vectors of the head have rhs 0 instead of 1.
  const Numbers relaxed = {1, 0, 1, 0, 0, 0};
  return {{"first", half_square(solve_prompt(single, {0}))},
          {"second", half_square(solve_prompt(single, {1}))},
          {"joint", half_square(solve_prompt(joint, {1, 1, 1}))},
          {"relaxed", half_square(solve_prompt(joint, {1, 1, 1}, &relaxed))}};
}

ResultTable golden_table(Context& context) {
  const auto found = context.part("golden", [](const auto&) { return golden(); });
  ResultTable table{.title = "|p|^2 / 2 of the prompt SVMs",
                    .columns = {"problem", "found", "exact", "difference"},
                    .rows = {},
                    .note =
                        "By the exact oracle. single_input: keys (-.1, 1), (1, 0), (0, 0). joint: "
                        "tokens (1, 1), (1, -1), (.5, 1) against (0, 0).",
                    .figure = {}};
  const auto row = [&](const char* title, const char* name, double exact, const char* text) {
    const double value = found.at(name);
    table.rows.push_back({title, number_cell(value, "{:.8f}"), text,
                          number_cell(std::abs(value - exact), "{:.1e}")});
  };
  row("single_input, first token", "first", 1 / 2.02, "1/2.02");
  row("single_input, second token", "second", 0.5, "1/2");
  row("joint, all constraints at 1", "joint", 17.0 / 18, "17/18");
  row("joint, third constraint relaxed to 0", "relaxed", 0.5, "1/2");
  return table;
}

// ---- one input: where descent goes

ResultTable single_table(Context& context, const json& settings, bool local) {
  const auto data = single_input(local);
  const auto found = context.part(local ? "single-local" : "single-global", [&](const auto&) {
    json runs;
    for (const double start : kStarts) {
      const auto path = descend(data, {0, start}, settings.at("iterations"), settings.at("every"),
                                settings.at("learning_rate"), settings.at("ngd_eps"));
      json run = {{"path", paths_json(path)}};
      for (const int64_t a : {0, 1})
        run["cos"].push_back(cosine(path.back(), solve_prompt(data, {a}).w));
      runs.push_back(run);
    }
    return runs;
  });
  ResultTable table{
      .title = fmt::format("single_input, {}: the prompt from six starts (0, c)",
                           local ? "third score 0" : "third score 0.9"),
      .columns = {"start", "path", "cos with SVM of token 1", "cos with SVM of token 2"},
      .rows = {},
      .note = "Normalised descent. Token 1 has the largest score.",
      .figure = Figure{
          .axis = "second coordinate of p", .across = "first coordinate of p", .form = "plane"}};
  for (size_t i = 0; i < found.size(); ++i) {
    const auto& points = found[i].at("path");
    table.rows.push_back({fmt::format("c = {}", kStarts[i]),
                          Cell{{"text", fmt::format("{} points", points.size())}, {"path", points}},
                          number_cell(found[i].at("cos")[0], "{:.4f}"),
                          number_cell(found[i].at("cos")[1], "{:.4f}")});
  }
  return table;
}

// ---- several inputs: growth of the norm

ResultTable growth_table(Context& context, const json& settings) {
  const auto data = multi_input();
  const auto svm = solve_prompt(data, {0, 0, 0});
  const int64_t iterations = settings.at("iterations"), every = settings.at("every");
  const auto found = context.part("multi-input", [&](const auto&) {
    json runs;
    for (const bool normalised : {true, false})
      for (const double start : kStarts) {
        const auto path = descend(data, {start, 0}, iterations, every, normalised ? 0.1 : 1,
                                  normalised ? 1e-12 : -1);
        json norms;
        for (const auto& p : path) norms.push_back(norm(p));
        runs.push_back({{"norms", norms}, {"cos", defined(cosine(path.back(), svm.w))}});
      }
    return runs;
  });
  const auto least = [&](size_t first) {  // of the runs of one kind of descent
    double cos = 1;
    for (size_t r = first; r < first + std::size(kStarts); ++r)
      cos = std::min(cos, found[r].at("cos").get<double>());
    return cos;
  };
  ResultTable table{
      .title = "multi_input: |p| against the iteration",
      .columns = {"descent, start"},
      .rows = {},
      .note = fmt::format("Normalised descent with step 0.1 grows linearly, plain descent "
                          "with step 1 logarithmically. Least cosine with the SVM of the "
                          "first tokens at the end: {:.4f}, and {:.4f}.",
                          least(0), least(std::size(kStarts))),
      .figure = Figure{.axis = "|p|", .across = "iteration", .form = "curves"}};
  for (int64_t k = 0; k <= iterations; k += every) table.columns.push_back(std::to_string(k));
  for (size_t r = 0; r < found.size(); ++r) {
    const bool normalised = r < std::size(kStarts);
    auto& row =
        table.rows.emplace_back(1, fmt::format("{}, c = {}", normalised ? "normalised" : "plain",
                                               kStarts[r % std::size(kStarts)]));
    for (const double value : found[r].at("norms")) row.push_back(number_cell(value, "{:.3f}"));
  }
  return table;
}

// ---- losses

ResultTable loss_table(Context& context, const json& settings) {
  Numbers constants = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 100};
  const auto found = context.part("losses", [&](const auto&) {
    json runs;
    for (const double c : constants) {
      json run;
      for (const auto loss : {csrc::MarginLoss::kLinear, csrc::MarginLoss::kLogistic}) {
        const auto data = diff_loss(c, loss);
        const auto svm = solve_prompt(data, {1, 1});
        const auto path = descend(data, {0, 0}, settings.at("iterations"), 10,
                                  settings.at("learning_rate"), settings.at("ngd_eps"));
        const auto cos_at = [&](size_t k) {
          return defined(cosine(path[std::min(k, path.size() - 1)], svm.w));
        };
        run.push_back({cos_at(2), cos_at(path.size() - 1)});
      }
      runs.push_back(run);
    }
    return runs;
  });
  ResultTable table{
      .title = "diff_loss: cosine of p with its SVM, by loss",
      .columns = {"C", "-u, iteration 20", "-u, end", "logistic, iteration 20", "logistic, end"},
      .rows = {},
      .note =
          "One limit, two transients: a large score C pulls the linear loss first to "
          "its input, and saturates the logistic one.",
      .figure = {}};
  for (size_t i = 0; i < constants.size(); ++i) {
    auto& row = table.rows.emplace_back(1, fmt::format("{}", constants[i]));
    for (const auto& loss : found[i])
      for (const auto& value : loss)
        row.push_back(value.is_null() ? Cell("-") : number_cell(value.get<double>(), "{:.4f}"));
  }
  return table;
}

// ---- the head and the prompt together

/// Descent on v and p, normalised separately; features are the attention outputs.
json joint_run(const std::array<double, 2>& third, const json& settings) {
  const Numbers labels = {1, -1, 1};
  auto data = joint_keys(third);
  Numbers p = {0, -1}, v = {-1, 0}, s;
  const int64_t iterations = settings.at("joint_iterations");
  const double lr = settings.at("learning_rate");
  for (int64_t k = 0; k < iterations; ++k) {
    for (int64_t j = 0; j < 6; ++j)
      data.score[j] = labels[j / 2] * (v[0] * data.key[2 * j] + v[1] * data.key[2 * j + 1]);
    const auto dp = prompt_gradient(data, p, s);
    Numbers dv(2);
    for (int64_t i = 0; i < 3; ++i) {
      Numbers o(2);
      for (int64_t t = 0; t < 2; ++t)
        for (int64_t c = 0; c < 2; ++c) o[c] += s[2 * i + t] * data.key[(2 * i + t) * 2 + c];
      const double u = labels[i] * (v[0] * o[0] + v[1] * o[1]);
      for (int64_t c = 0; c < 2; ++c)
        dv[c] -= csrc::margin_loss_weight(data.loss, u) * labels[i] * o[c] / 3;
    }
    ngd_update(p, dp, lr, 1e-19);
    ngd_update(v, dv, lr, 1e-9);
  }
  const Numbers relaxed = {1, 0, 1, 0, 0, 0};
  return {{"p", p},
          {"v", v},
          {"cos_all", cosine(p, solve_prompt(data, {1, 1, 1}).w)},
          {"cos_relaxed", cosine(p, solve_prompt(data, {1, 1, 1}, &relaxed).w)},
          {"cos_v", cosine(v, {0, 1})}};
}

ResultTable joint_table(Context& context, const json& settings) {
  ResultTable table{
      .title = "joint (v, p): where both go",
      .columns = {"third token", "cos(p, SVM with all at 1)", "cos(p, SVM with the third relaxed)",
                  "cos(v, (0, 1))"},
      .rows = {},
      .note =
          "(.5, 1) is a support vector of the head's SVM, whose direction is (0, 1): all "
          "constraints are at 1. (.5, 1.5) is none, and its constraint is relaxed to 0.",
      .figure = {}};
  for (const std::array<double, 2> third : {std::array{0.5, 1.0}, {0.5, 1.5}}) {
    const auto found = context.part(fmt::format("joint-{}", third[1]),
                                    [&](const auto&) { return joint_run(third, settings); });
    table.rows.push_back(
        {fmt::format("({}, {})", third[0], third[1]), number_cell(found.at("cos_all"), "{:.4f}"),
         number_cell(found.at("cos_relaxed"), "{:.4f}"), number_cell(found.at("cos_v"), "{:.4f}")});
  }
  return table;
}

std::vector<ResultTable> run(Context& context) {
  const json settings = context.settings();
  return {golden_table(context),
          single_table(context, settings, false),
          single_table(context, settings, true),
          growth_table(context, settings),
          loss_table(context, settings),
          joint_table(context, settings)};
}

}  // namespace

Experiment prompt() {
  return {.paper = kPaper,
          .name = "prompt",
          .title = "A tuned prompt selects tokens by a max-margin problem",
          .claim =
              "Max-Margin Token Selection in Attention Mechanism shows a tuned prompt going in the "
              "direction of a max-margin problem that separates selected tokens; checked here on "
              "its constructed data, with the exact values of the problems.",
          .limits =
              "the vision-transformer study of that paper, which is not repeated; convergence of "
              "the joint problem is slow, and cosines at its end are below their limits.",
          .times = {"1 s", "1 s", "1 s"},
          .settings = settings,
          .run = run};
}

}  // namespace kktorch::attention_svm
