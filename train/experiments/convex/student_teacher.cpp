// student_teacher: a layer of a Transformer, and students trained on its frozen features.
//
//     X_i: input of the last attention sublayer    y_i: its output at row 0, projected to c numbers
//     min sum_i |f(X_i) - y_i|^2 / 2 + beta (penalty of the student)        beta = rho beta_max
//
// Students: softmax attention (2) with and without decay of Q and K; the factored network (11) by
// Adam on a softmax of logits and by palm with escapes; the convex program (12) by the certified
// solver and by full-batch Adam on Z. The last four share one objective; softmax attention has
// another regulariser, and is compared by data loss and test error alone.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>

#include "ops/convex_attention.h"
#include "ops/convex_solver.h"
#include "train/experiments/context.h"
#include "train/experiments/convex/experiments.h"
#include "train/experiments/convex/student_data.h"
#include "train/experiments/convex/students.h"
#include "train/experiments/per_seed.h"

namespace kktorch::convex {
namespace {

using at::Tensor;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kStudents[] = {"softmax",
                                     "softmax, no decay of Q and K",
                                     "factored, Adam on logits",
                                     "factored, palm and escapes",
                                     "convex, certified solver",
                                     "convex, Adam on Z"};
constexpr int64_t kConvex = 4;  // the certified one

ordered_json settings(Preset preset) {
  using Numbers = std::vector<double>;
  const Numbers rhos = {0.3, 0.1, 0.03, 0.01}, rates = {1e-2, 3e-3, 1e-3, 3e-4};
  return {{"teacher", "random"},
          {"teacher_steps", by_preset(preset, 20, 1000, 1000)},
          {"features", ""},
          {"targets", ""},
          {"test_share", 0.2},
          {"width", by_preset(preset, 16, 64, 64)},
          {"tokens", by_preset(preset, 8, 32, 32)},
          {"outputs", by_preset(preset, 4, 16, 16)},
          {"vocabulary", 64},
          {"layers", 4},
          {"teacher_heads", 4},
          {"samples", by_preset(preset, 200, 2000, 2000)},
          {"test_samples", by_preset(preset, 200, 1000, 1000)},
          {"student_heads", 4},
          {"rhos", by_preset<Numbers>(preset, {0.1}, rhos, rhos)},
          {"rates", by_preset<Numbers>(preset, {3e-3}, rates, rates)},
          {"steps", by_preset(preset, 100, 300, 2000)},
          {"cycles", by_preset(preset, 100, 150, 1500)},
          {"path_points", by_preset(preset, 6, 16, 31)},
          {"tolerance", 1e-6},
          {"seeds", by_preset(preset, 1, 3, 3)}};
}

/// The learning rate whose student is best on a fifth of the training samples.
double chosen_rate(const Lesson& lesson,
                   const std::function<json(const Lesson&, double)>& student) {
  const std::vector<double> rates = lesson.settings.at("rates");
  if (rates.size() == 1) return rates[0];
  const auto &X = lesson.data.X, &Y = lesson.data.Y;
  const int64_t N = X.size(0), kept = N - N / 5;
  const StudentData part = {X.slice(0, 0, kept), Y.slice(0, 0, kept), X.slice(0, kept),
                            Y.slice(0, kept)};
  const Lesson own = {lesson.settings, part, lesson.beta, lesson.seed, false};
  double best = INFINITY, rate = rates[0];
  for (const double each : rates) {
    const double loss = student(own, each).at("test loss");
    if (!(loss < best)) continue;
    best = loss;
    rate = each;
  }
  return rate;
}

/// All students of one seed and one penalty; curves only where they are drawn, for they cost as
/// much as the training.
json compare(const json& s, const StudentData& data, uint64_t seed, double rho, bool is_drawn) {
  const Lesson lesson = {s, data, rho * beta_max(data.X, data.Y), seed, is_drawn};
  json students = json::array();
  const auto add = [&](const std::function<json(const Lesson&, double)>& student) {
    const double rate = chosen_rate(lesson, student);
    auto result = student(lesson, rate);
    result["rate"] = rate;
    students.push_back(result);
  };
  for (const bool decay : {true, false})
    add([&](const Lesson& own, double rate) { return softmax_student(own, rate, decay); });
  const auto convex = convex_student(lesson);
  const int64_t heads = std::max<int64_t>(convex.at("active groups").get<int64_t>(), 8);
  add([&](const Lesson& own, double rate) { return factored_student(own, rate, false, heads); });
  students.push_back(factored_student(lesson, 0, true, heads + heads / 2));
  students.push_back(convex);
  const double lip = convex.at("lip");
  add([&](const Lesson& own, double rate) { return adam_student(own, rate, lip); });
  json result = {{"students", students}, {"beta", lesson.beta}, {"tokens", data.X.size(1)}};
  if (data.map.defined()) result["teacher map"] = values_of(data.map);
  if (data.accuracy) result["teacher accuracy"] = *data.accuracy;
  return result;
}

/// The certified path on these features.
json follow_path(const json& s, const StudentData& data) {
  std::vector<double> rhos;
  const int64_t points = s.at("path_points");
  for (int64_t k = 0; k < points; ++k)
    rhos.push_back(std::pow(10., -2 * static_cast<double>(k) / static_cast<double>(points - 1)));
  ConvexOptions options;
  options.tol_rel = s.at("tolerance");
  json path = json::array();
  size_t k = 0;
  for (const auto& r : solve_path(data.X, data.Y, rhos, options)) {
    auto point = tokens_of(r.Z);
    point["rho"] = rhos[k++];
    point["train loss"] = loss_per_sample(convex_predict(data.X, r.Z), data.Y);
    point["test loss"] = loss_per_sample(convex_predict(data.test_X, r.Z), data.test_Y);
    point["gap"] = r.gap / r.F;
    path.push_back(point);
  }
  return {{"path", path}};
}

// ---- tables ----

using Runs = std::vector<std::vector<json>>;  // [rho][seed]

std::vector<double> over_seeds(const std::vector<json>& seeds, size_t student, const char* key) {
  std::vector<double> values;
  for (const auto& run : seeds) values.push_back(run.at("students")[student].at(key));
  return values;
}

ResultTable student_table(const Runs& runs, const std::vector<double>& rhos, const char* title,
                          const char* key, const char* format, bool logarithmic,
                          const std::string& note) {
  ResultTable table = {
      .title = title,
      .columns = {"student"},
      .rows = {},
      .note = note,
      .figure = Figure{.axis = title, .across = "penalty", .logarithmic = logarithmic}};
  for (const double rho : rhos) table.columns.push_back(fmt::format("ρ {:g}", rho));
  for (size_t a = 0; a < std::size(kStudents); ++a) {
    std::vector<Cell> row = {kStudents[a]};
    for (const auto& seeds : runs) row.push_back(spread_cell(over_seeds(seeds, a, key), format));
    table.rows.push_back(row);
  }
  return table;
}

/// What `key` of a curve was at the last point up to `at`, if there is one.
std::optional<json> point_at(const json& curve, const char* place, double at) {
  std::optional<json> found;
  for (const auto& point : curve)
    if (point.at(place).get<double>() <= at) found = point;
  return found;
}

/// Up to 5 places per decade, from the first point of a curve to the last.
std::vector<double> places_of(const json& run, const char* place, double unit) {
  double first = INFINITY, last = 0;
  for (const auto& student : run.at("students"))
    for (const auto& point : student.at("curve")) {
      const double at = unit * point.at(place).get<double>();
      if (at > 0) first = std::min(first, at);
      last = std::max(last, at);
    }
  std::vector<double> places;
  for (int64_t k = static_cast<int64_t>(std::floor(5 * std::log10(first)));
       places.empty() || places.back() < last; ++k)
    places.push_back(std::pow(10., static_cast<double>(k) / 5));
  return places;
}

/// A number of the students' curves, first seed, drawn over time or iterations.
struct CurvePlot {
  const char *title, *key, *axis;
  bool over_time;
  size_t first;  ///< student
  const char* note;
};

/// The objective of the certified solver has its band: up from the best lower bound so far.
ResultTable curve_table(const json& run, double rho, const CurvePlot& plot) {
  const char* place = plot.over_time ? "seconds" : "iteration";
  const double unit = plot.over_time ? 1e3 : 1;
  ResultTable table = {.title = fmt::format("{}, ρ = {:g}", plot.title, rho),
                       .columns = {"student"},
                       .rows = {},
                       .note = plot.note,
                       .figure = Figure{.axis = plot.axis,
                                        .across = plot.over_time ? "milliseconds" : "iteration",
                                        .logarithmic = true,
                                        .form = "log-curves",
                                        .only = true}};
  const auto places = places_of(run, place, unit);
  for (const double at : places) table.columns.push_back(fmt::format("{:.3g}", at));
  for (size_t a = plot.first; a < std::size(kStudents); ++a) {
    std::vector<Cell> row = {kStudents[a]};
    for (const double at : places) {
      const auto point = point_at(run.at("students")[a].at("curve"), place, at / unit);
      if (!point) {
        row.emplace_back("–");
        continue;
      }
      row.push_back(number_cell(point->at(plot.key), "{:.5g}"));
      if (std::string(plot.key) == "objective" && point->contains("bound")) {
        row.back()["low"] = std::max(point->at("bound").get<double>(), 0.);
        row.back()["high"] = point->at("objective");
      }
    }
    table.rows.push_back(row);
  }
  return table;
}

constexpr CurvePlot kPlots[] = {
    {"Training loss against time", "train", "loss per sample", true, 0,
     "Without the penalty and without the time of evaluations. First seed."},
    {"Training loss against iterations", "train", "loss per sample", false, 0,
     "Without the penalty. First seed."},
    {"Test loss against time", "test", "loss per sample", true, 0,
     "Without the time of evaluations. First seed."},
    {"Objective against time, with the certified gap", "objective", "objective", true, 2,
     "Students that share the objective; the band of the certified solver reaches down to its best "
     "lower bound so far. First seed."}};

/// (F - D) / D with the bound D of the certified solver, at the end of every decade.
ResultTable time_table(const json& run, double rho) {
  const double bound = run.at("students")[kConvex].at("bound");
  ResultTable table = {
      .title = fmt::format("Distance from the optimum against time, ρ = {:g}", rho),
      .columns = {"student"},
      .rows = {},
      .note =
          "(F − D) / D with the bound D of the certified solver: the optimum is not below D, so "
          "that the distance is at most this. First seed; a dash where nothing was logged yet.",
      .figure = {}};
  std::vector<double> times;
  for (double t = 0.01; t < 200; t *= std::sqrt(10.)) times.push_back(t);
  for (const double t : times) table.columns.push_back(fmt::format("{:.2g} s", t));
  for (size_t a = 2; a < std::size(kStudents); ++a) {
    std::vector<Cell> row = {kStudents[a]};
    for (const double t : times) {
      const auto point = point_at(run.at("students")[a].at("curve"), "seconds", t);
      row.push_back(
          point
              ? number_cell(std::max((point->at("objective").get<double>() - bound) / bound, 1e-16),
                            "{:.1e}")
              : Cell("–"));
    }
    table.rows.push_back(row);
  }
  return table;
}

ResultTable map_table(const json& run, double rho) {
  ResultTable table = {.title = fmt::format("Where attention lies, ρ = {:g}", rho),
                       .columns = {"student"},
                       .rows = {},
                       .note =
                           "Mean attention of row 0 over test samples and heads, of softmax "
                           "students; the share of a token in the sum of norms, of convex ones. "
                           "First seed.",
                       .figure = Figure{.axis = "share", .across = "token", .form = "bars"}};
  for (int64_t k = 0; k < run.at("tokens").get<int64_t>(); ++k)
    table.columns.push_back(std::to_string(k));
  const auto add = [&](const std::string& name, const std::vector<double>& map) {
    std::vector<Cell> row = {name};
    for (const double share : map) row.push_back(number_cell(share, "{:.3f}"));
    table.rows.push_back(row);
  };
  if (run.contains("teacher map")) add("teacher", run.at("teacher map"));
  for (const int64_t a : {int64_t{0}, int64_t{1}, kConvex})
    add(kStudents[a], run.at("students")[a].at("map"));
  return table;
}

ResultTable certificate_table(const Runs& runs, const std::vector<double>& rhos) {
  ResultTable table = {
      .title = "Certified relative gap of the students that share an objective",
      .columns = {"student"},
      .rows = {},
      .note =
          "(Objective − D) / Objective with the best bound D of all of them; "
          "mean ± sd over seeds.",
      .figure = Figure{.axis = "relative gap", .across = "penalty", .logarithmic = true}};
  for (const double rho : rhos) table.columns.push_back(fmt::format("ρ {:g}", rho));
  for (size_t a = 2; a < std::size(kStudents); ++a) {
    std::vector<Cell> row = {kStudents[a]};
    for (const auto& seeds : runs) {
      std::vector<double> gaps;
      for (const auto& run : seeds) {
        double D = -INFINITY;
        for (size_t b = 2; b < std::size(kStudents); ++b)
          D = std::max(D, run.at("students")[b].at("bound").get<double>());
        const double F = run.at("students")[a].at("objective");
        gaps.push_back(std::max((F - D) / F, 0.));
      }
      row.push_back(spread_cell(gaps, "{:.1e}"));
    }
    table.rows.push_back(row);
  }
  return table;
}

ResultTable token_table(const Runs& runs, const std::vector<double>& rhos) {
  const auto& first = runs.front().front();
  ResultTable table = {.title = "Sparsity and entropy",
                       .columns = {"quantity"},
                       .rows = {},
                       .note = fmt::format("Of {} tokens. Entropy of softmax maps as a share of "
                                           "that of uniform attention.",
                                           first.at("tokens").get<int64_t>()),
                       .figure = {}};
  for (const double rho : rhos) table.columns.push_back(fmt::format("ρ {:g}", rho));
  const auto add = [&](const std::string& name, size_t student, const char* key,
                       const char* format) {
    std::vector<Cell> row = {name};
    for (const auto& seeds : runs)
      row.push_back(spread_cell(over_seeds(seeds, student, key), format));
    table.rows.push_back(row);
  };
  add("active tokens, convex", kConvex, "active tokens", "{:.1f}");
  add("active groups, convex", kConvex, "active groups", "{:.1f}");
  add("active tokens, Adam on Z", 5, "active tokens", "{:.1f}");
  add("entropy, softmax", 0, "entropy", "{:.3f}");
  add("entropy, softmax without decay of Q and K", 1, "entropy", "{:.3f}");
  if (!first.contains("teacher accuracy")) return table;
  std::vector<Cell> row = {"accuracy of the teacher in %"};
  for (const auto& seeds : runs) {
    std::vector<double> values;
    for (const auto& run : seeds) values.push_back(run.at("teacher accuracy"));
    row.push_back(spread_cell(values, "{:.1f}"));
  }
  table.rows.push_back(row);
  return table;
}

ResultTable path_table(const std::vector<json>& paths) {
  ResultTable table = {
      .title = "The certified path on these features",
      .columns = {"along the path"},
      .rows = {},
      .note = "Mean ± sd over seeds; the largest certified relative gap of a point.",
      .figure =
          Figure{.axis = "value", .across = "1/ρ", .logarithmic = true, .form = "log-curves"}};
  const auto& first = paths.front().at("path");
  for (const auto& point : first)
    table.columns.push_back(fmt::format("{:.3g}", 1 / point.at("rho").get<double>()));
  for (const auto& [key, format] :
       {std::pair("active tokens", "{:.1f}"), std::pair("active groups", "{:.1f}"),
        std::pair("train loss", "{:.3f}"), std::pair("test loss", "{:.3f}"),
        std::pair("gap", "{:.0e}")}) {
    std::vector<Cell> row = {key};
    for (size_t k = 0; k < first.size(); ++k) {
      std::vector<double> values;
      for (const auto& path : paths) values.push_back(path.at("path")[k].at(key));
      row.push_back(spread_cell(values, format));
    }
    table.rows.push_back(row);
  }
  return table;
}

/// Importance of the tokens along the penalty, of the first seed.
MapGrid importance_map(const json& path) {
  MapMatrix shares;
  for (const auto& point : path.at("path")) shares.push_back(point.at("map"));
  return {.title = "Importance of the tokens along the certified path",
          .down = "point, ρ falls",
          .across = "token",
          .quantity = "share of Σ|z|",
          .columns = {"convex program"},
          .rows = {{.name = "", .maps = {shares}}},
          .note =
              "Share of a token in the sum of norms, a row per penalty from ρ = 1 down to 0.01. "
              "First seed."};
}

Findings run(Context& context) {
  const json s = context.settings();
  const std::vector<double> rhos = s.at("rhos");
  PerSeed<StudentData> data([&](uint64_t seed) { return student_data(s, seed); });
  Runs runs;
  for (const double rho : rhos) {
    runs.emplace_back();
    for (const auto seed : context.seeds()) {
      const bool is_drawn = rho == rhos.back() && seed == context.seeds().front();
      runs.back().push_back(context.part(
          fmt::format("rho{:g}-seed{}", rho, seed),
          [&](const auto&) { return compare(s, data.at(seed), seed, rho, is_drawn); }));
    }
  }
  std::vector<json> paths;
  for (const auto seed : context.seeds())
    paths.push_back(context.part(fmt::format("path-seed{}", seed),
                                 [&](const auto&) { return follow_path(s, data.at(seed)); }));
  const json& shown = runs.back().front();
  std::vector<ResultTable> tables = {
      student_table(runs, rhos, "Test loss per sample", "test loss", "{:.4f}", false,
                    "Half squared error on new samples, standardised targets; mean ± sd over "
                    "seeds. Learning rates were chosen on a fifth of the training samples."),
      student_table(runs, rhos, "Training loss per sample", "train loss", "{:.4f}", false,
                    "Without the penalty."),
      student_table(runs, rhos, "R² on new samples", "test R2", "{:.3f}", false,
                    "1 would be exact, 0 the mean."),
      student_table(runs, rhos, "Seconds of training", "seconds", "{:.2f}", true,
                    "The chosen rate alone, without evaluation."),
      time_table(shown, rhos.back())};
  for (const auto& plot : kPlots) tables.push_back(curve_table(shown, rhos.back(), plot));
  append(tables, {certificate_table(runs, rhos), token_table(runs, rhos),
                  map_table(shown, rhos.back()), path_table(paths)});
  return {tables, {importance_map(paths.front())}};
}

}  // namespace

Experiment student_teacher() {
  return {
      .paper = kPaper,
      .name = "student_teacher",
      .title = "Students of a frozen attention layer",
      .claim =
          "On frozen features of a Transformer, the convex student converges faster and has "
          "lower training and test error than softmax attention, whose maps are near uniform "
          "while convex ones are sparse over tokens; checked here with a random teacher, a "
          "trained one, or features from files: losses, certified gaps against time, and maps.",
      .limits =
          "anything about BERT, unless its features come from files: the other teachers are "
          "synthetic. Softmax attention has another regulariser, so that only data loss and "
          "test error compare. Times are of these programs on this machine.",
      .times = {"5 s", "20 min", "hours"},
      .settings = settings,
      .choices = {{"teacher", {"random", "trained", "file"}}, {"features", {}}, {"targets", {}}},
      .run = run};
}

}  // namespace kktorch::convex
