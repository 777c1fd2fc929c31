// visual: two inputs in the plane. Paths of W_k z_i from W = 0 (for (K, Q): Q = 0 and K small), the
// directions Wmm z_i and Wmm* z_i, and the lines that separate the selected token from the others.
#include <fmt/format.h>

#include <array>
#include <cmath>

#include "train/experiments/attention_svm/experiments.h"
#include "train/experiments/attention_svm/trials.h"
#include "train/loop/attention_descent.h"

namespace kktorch::attention_svm {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset) {
  return {{"inputs", 2},        {"width", 2},  {"iterations", 2000}, {"learning_rate", 0.1},
          {"ngd_eps", kNgdEps}, {"every", 10}, {"key_scale", 0.1},   {"seeds", 1}};
}

/// Tokens are normal numbers, moved; queries have norm 1; all labels are 1.
struct Scene {
  const char *name, *title;
  int64_t T;
  uint64_t seed;
  double scale;
};
constexpr Scene kScenes[] = {{"three", "three tokens, two clusters", 3, 1, 0.3},
                             {"five", "five tokens, the first apart", 5, 3, 0.5}};

Problem problem_of(const Scene& scene) {
  constexpr int64_t n = 2, d = 2;
  const int64_t T = scene.T;
  // v, X and Z come from one generator, in this order.
  const auto numbers = draw_normal(scene.seed, {d + n * T * d + n * d}, 1);
  Problem p{.n = n, .T = T, .d = d, .row_ptr = regular_row_ptr(n, T)};
  p.v.assign(numbers.begin(), numbers.begin() + d);
  p.x.assign(numbers.begin() + d, numbers.begin() + d + n * T * d);
  p.z.assign(numbers.end() - n * d, numbers.end());
  p.labels = {1, 1};
  const auto normalise = [](double* v) {
    const double length = std::hypot(v[0], v[1]);
    v[0] /= length;
    v[1] /= length;
  };
  normalise(p.v.data());
  for (int64_t i = 0; i < n; ++i) normalise(p.z.data() + i * d);
  for (double& x : p.x) x *= scene.scale;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t t = 0; t < T; ++t) {
      double* x = p.x.data() + (i * T + t) * d;
      if (T == 3) {
        x[0] += i == 0 ? -1 : 1;
      } else if (t == 0) {
        x[0] = 1;
        x[1] = i == 0 ? 0.5 : -0.5;
      } else {
        x[0] -= 1;
      }
    }
  return p;
}

std::vector<double> start(bool factors, double scale, uint64_t seed) {
  std::vector<double> weights(4);
  if (!factors) return weights;
  weights = draw_normal(seed, {4}, scale);
  weights.resize(8);  // Q = 0
  return weights;
}

std::array<double, 2> applied(const std::vector<double>& W, const double* z) {
  return {W[0] * z[0] + W[1] * z[1], W[2] * z[0] + W[3] * z[1]};
}

json run_scene(const Scene& scene, const json& settings, bool factors) {
  const auto problem = problem_of(scene);
  AttentionDescent descent(problem.model(),
                           {.lr = settings.at("learning_rate"),
                            .eps = settings.at("ngd_eps"),
                            .m = factors ? problem.d : 0},
                           start(factors, settings.at("key_scale"), scene.seed));
  json paths = json::array({json::array(), json::array()});
  const int64_t every = settings.at("every");
  descent.run(settings.at("iterations"), [&](const AttentionDescent& at) {
    if (at.iteration() % every == 0)
      for (int64_t i = 0; i < 2; ++i) paths[i].push_back(applied(at.W(), problem.z.data() + i * 2));
    return true;
  });
  const auto& alpha = descent.state().argmax;
  const auto frobenius = solve(problem, alpha);
  const auto nuclear = solve(problem, alpha, csrc::SvmNorm::kNuclear);
  json result = {{"paths", paths}, {"alpha", alpha}, {"probability", descent.least_probability()}};
  for (const auto& [name, svm] : {std::pair{"frobenius", &frobenius}, {"nuclear", &nuclear}}) {
    const bool solved = svm->status == csrc::SvmStatus::kOptimal;
    result[name] = {{"w", solved ? json(svm->w) : json(nullptr)},
                    {"cos", solved ? defined(cosine(descent.W(), svm->w)) : json(nullptr)},
                    {"margin", solved ? defined(svm->certificate.lower) : json(nullptr)}};
  }
  return result;
}

Cell points_cell(const json& points) {
  return {{"text", points.size() == 1 ? fmt::format("({:.3f}, {:.3f})", points[0][0].get<double>(),
                                                    points[0][1].get<double>())
                                      : fmt::format("{} points", points.size())},
          {"points", points}};
}

/// Tokens, the path of W_k z_i, and the lines y.x = y.x_alpha - 1/2 for y = Wmm z_i, which lie half
/// way between the selected token and the support tokens.
ResultTable picture_of(const Scene& scene, const json& result, const char* run, int64_t i) {
  const auto problem = problem_of(scene);
  ResultTable table{
      .title = fmt::format("{}, input {}, {}", scene.title, i + 1, run),
      .columns = {"drawn", "where"},
      .rows = {},
      .note =
          "Lines: half way between the selected token and its support tokens, y.x = "
          "y.x_selected - 1/2 with y = Wmm z and Wmm* z.",
      .figure = Figure{.axis = "second coordinate", .across = "first coordinate", .form = "plane"}};
  const int64_t selected = result.at("alpha").at(i);
  json others;
  for (int64_t t = 0; t < problem.T; ++t)
    if (t != selected) others.push_back({problem.token(i, t)[0], problem.token(i, t)[1]});
  const double* x = problem.token(i, selected);
  table.rows.push_back({"selected token", points_cell({{x[0], x[1]}})});
  table.rows.push_back({"other tokens", points_cell(others)});
  auto path = points_cell(result.at("paths").at(i));
  path["path"] = path["points"];
  path.erase("points");
  table.rows.push_back({"path of W z", path});
  for (const auto& [name, title] : {std::pair{"frobenius", "Wmm"}, {"nuclear", "Wmm*"}}) {
    const auto& w = result.at(name).at("w");
    if (w.is_null()) continue;
    const auto y = applied(w.get<std::vector<double>>(), problem.z.data() + i * 2);
    const double c = y[0] * x[0] + y[1] * x[1] - 0.5;
    table.rows.push_back(
        {title, Cell{{"text", fmt::format("{:.3f} x + {:.3f} y = {:.3f}", y[0], y[1], c)},
                     {"line", {y[0], y[1], c}}}});
  }
  return table;
}

std::vector<ResultTable> run(Context& context) {
  const json settings = context.settings();
  std::vector<ResultTable> tables = {
      {.title = "Directions at the end",
       .columns = {"data, run", "selected tokens", "least max softmax", "cos(W, Wmm)",
                   "cos(W, Wmm*)", "margin 1/|Wmm|", "margin 1/|Wmm*|"},
       .rows = {},
       .note = "Selected tokens count from 0, one per input.",
       .figure = {}}};
  for (const auto& scene : kScenes)
    for (const bool factors : {false, true}) {
      const auto* run = factors ? "(K, Q)" : "W";
      const auto result =
          context.part(fmt::format("{}-{}", scene.name, factors ? "kq" : "w"),
                       [&](const auto&) { return run_scene(scene, settings, factors); });
      const auto cell = [&](const json& value) {
        return value.is_null() ? Cell("-") : number_cell(value.get<double>(), "{:.4f}");
      };
      tables[0].rows.push_back(
          {fmt::format("{}, {}", scene.title, run), result.at("alpha").dump(),
           cell(result.at("probability")), cell(result.at("frobenius").at("cos")),
           cell(result.at("nuclear").at("cos")), cell(result.at("frobenius").at("margin")),
           cell(result.at("nuclear").at("margin"))});
      for (int64_t i = 0; i < 2; ++i) tables.push_back(picture_of(scene, result, run, i));
    }
  return tables;
}

}  // namespace

Experiment visual() {
  return {.paper = kPaper,
          .name = "visual",
          .title = "Pictures in the plane: paths of gradient descent and separating lines",
          .claim =
              "The paper draws W z_i of descent on two inputs in the plane turning into the "
              "direction of the attention SVM; drawn here for W and (K, Q) with both SVMs.",
          .limits = "anything beyond two inputs: these are pictures.",
          .times = {"1 s", "1 s", "1 s"},
          .settings = settings,
          .run = run};
}

}  // namespace kktorch::attention_svm
