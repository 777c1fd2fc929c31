// modular: division modulo a prime, a / b = c, from a part of the table (grokking).
//
//     all (a, b), 1 <= b < p: p (p - 1) equations a = c b mod p, a random part of them for training
//
// A   a Transformer on the tokens EOS a / b = c EOS, by AdamW
// B   the convex program (12) on one-hot a and b: additive logits, which cannot fit division
// C   the gated convex program (14), one-hot or random embeddings, sampled gates, solved to a
//     certificate; then with columns generated. C' the same by full-batch Adam on Z
// D   convexified blocks with learned embeddings, end to end by AdamW, which is not convex; at
//     some updates the gated program is solved on its frozen features
//
// Accuracy on the other equations is measured along the trainings, and along the penalties of B, C.
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "ops/convex_attention.h"
#include "ops/convex_gates.h"
#include "ops/convex_solver.h"
#include "train/common/clock.h"
#include "train/experiments/context.h"
#include "train/experiments/convex/adam_on_z.h"
#include "train/experiments/convex/experiments.h"
#include "train/experiments/convex/modular_networks.h"
#include "train/experiments/convex/modular_table.h"
#include "train/loop/seed_stream.h"

namespace kktorch::convex {
namespace {

using at::Tensor;
using nlohmann::json;
using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  using Counts = std::vector<int64_t>;
  using Numbers = std::vector<double>;
  using Names = std::vector<std::string>;
  return {{"prime", by_preset(preset, 11, 97, 97)},
          {"fractions", by_preset<Numbers>(preset, {0.5}, {0.5}, {0.2, 0.3, 0.5})},
          {"layers", by_preset<Counts>(preset, {1}, {1, 2}, {1, 2})},
          {"decays", by_preset<Numbers>(preset, {1}, {1}, {0.1, 1})},
          {"updates", by_preset(preset, 200, 2000, 150000)},
          {"every", by_preset(preset, 50, 250, 250)},
          {"batch", 512},
          {"gates", by_preset<Counts>(preset, {16}, {64}, {64, 256, 1024})},
          {"embedding_gates", by_preset<Counts>(preset, {4}, {8}, {64, 256, 1024})},
          {"embedding_width", by_preset(preset, 16, 128, 128)},
          {"rhos", by_preset<Numbers>(preset, {0.1}, {0.3, 0.1}, {0.3, 0.1, 0.03, 0.01})},
          {"tolerance", by_preset(preset, 1e-4, 1e-3, 1e-4)},
          {"iterations", by_preset(preset, 2000, 2000, 20000)},
          {"adam_rate", 1e-2},
          {"adam_steps", by_preset(preset, 100, 400, 5000)},
          {"rounds", by_preset(preset, 1, 2, 20)},
          {"candidates", by_preset(preset, 16, 64, 256)},
          {"added_gates", by_preset(preset, 4, 8, 16)},
          {"block_layers", by_preset<Counts>(preset, {1, 2}, {1, 2}, {1, 2})},
          {"block_gates", by_preset<Names>(preset, {"live", "fixed"}, {"live"}, {"live", "fixed"})},
          {"block_width", by_preset(preset, 16, 128, 128)},
          {"block_heads", by_preset(preset, 32, 256, 256)},
          {"refits", by_preset(preset, 1, 2, 10)},
          {"refit_gates", by_preset(preset, 4, 8, 256)},
          {"refit_iterations", by_preset(preset, 100, 1000, 20000)},
          {"seeds", by_preset(preset, 1, 1, 3)}};
}

// ---- B and C ----

/// Equations as the convex programs see them: ids of one-hot features, or embedded.
struct Features {
  Tensor X;            ///< int64 [N, 2], or float64 [N, 2, d]
  Tensor dense;        ///< float64 [N, 2, d]
  int64_t num_values;  ///< of ids, or 0
};

Features one_hot_features(const Equations& e, int64_t p) { return {e.pairs, one_hot(e, p), p}; }

/// Fixed embeddings N(0, 1/d) of the numbers, plus a random vector for each place.
Features embedded_features(const Equations& e, int64_t p, int64_t d, uint64_t seed) {
  auto generator = generator_of(seed, "modular embeddings");
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  const auto table = scale * torch::randn({p, d}, generator, at::kDouble);
  const auto place = scale * torch::randn({2, d}, generator, at::kDouble);
  const auto X = (table.index_select(0, e.pairs.flatten()).view({-1, 2, d}) + place).contiguous();
  return {X, X, 0};
}

struct Program {
  Features train, test;
  Tensor answers, test_answers;
};

Program one_hot_program(const json& s, const Split& split) {
  const int64_t p = s.at("prime");
  return {one_hot_features(split.train, p), one_hot_features(split.test, p), split.train.answers,
          split.test.answers};
}
Program embedded_program(const json& s, const Split& split, uint64_t seed) {
  const int64_t p = s.at("prime"), d = s.at("embedding_width");
  return {embedded_features(split.train, p, d, seed), embedded_features(split.test, p, d, seed),
          split.train.answers, split.test.answers};
}

ConvexOptions options_of(const json& s, const Program& program) {
  ConvexOptions options;
  options.loss = "cross_entropy";
  options.num_values = program.train.num_values;
  options.classes = s.at("prime");
  options.tol_rel = s.at("tolerance");
  options.max_iter = s.at("iterations");
  options.progress = unless_interrupted;
  return options;
}

/// Share of right answers in %; gates by their vectors, on these samples.
double share_right(const Features& features, const Tensor& answers, const Tensor& Z,
                   const std::optional<Gates>& gates) {
  return accuracy(answers, [&](int64_t first, int64_t end) {
    const auto X = features.dense.slice(0, first, end);
    std::optional<Tensor> open;
    if (gates) open = apply_gates(X, gates->u1, gates->u2);
    return convex_predict(X, Z, open);
  });
}

json point_of(const Program& program, const std::optional<Gates>& gates, double rho,
              const ConvexResult& r, double seconds) {
  return {{"rho", rho},
          {"train", share_right(program.train, program.answers, r.Z, gates)},
          {"test", share_right(program.test, program.test_answers, r.Z, gates)},
          {"gap", r.gap / r.F},
          {"groups", r.Z.norm(2, {-1}).gt(0).sum().item<int64_t>()},
          {"iterations", r.iterations},
          {"status", r.status},
          {"seconds", seconds}};
}

/// The path of penalties with P gates; P = 0: without.
json solve_convex_path(const json& s, const Program& program, int64_t P, uint64_t seed) {
  auto options = options_of(s, program);
  std::optional<Gates> gates;
  if (P > 0) {
    gates = sample_gates(program.train.dense, P, static_cast<int64_t>(seed));
    options.gate = gates->pattern;
  }
  const auto& X = program.train.X;
  const double top = beta_max(X, program.answers, options);
  json points = json::array();
  for (const double rho : s.at("rhos").get<std::vector<double>>()) {
    const auto start = Clock::now();
    const auto r = solve(X, program.answers, rho * top, options);
    options.Z0 = r.Z;
    options.lip = r.lip;
    points.push_back(point_of(program, gates, rho, r, seconds_since(start)));
  }
  return {{"points", points}};
}

/// C': the last penalty by full-batch Adam on Z, and one proximal step.
json solve_by_adam(const json& s, const Program& program, int64_t P, uint64_t seed) {
  auto options = options_of(s, program);
  const auto gates = sample_gates(program.train.dense, P, static_cast<int64_t>(seed));
  options.gate = gates.pattern;
  const auto& X = program.train.X;
  const double rho = s.at("rhos").back(), beta = rho * beta_max(X, program.answers, options);
  const auto start = Clock::now();
  const auto Z = adam_on_z(
      X, program.answers, beta, options,
      {.rate = s.at("adam_rate"), .steps = s.at("adam_steps"), .progress = unless_interrupted});
  auto r = shrunk(X, program.answers, beta, options, Z, 0);
  r.iterations += s.at("adam_steps").get<int64_t>();
  return {{"points", json::array({point_of(program, gates, rho, r, seconds_since(start))})}};
}

/// C with column generation at the last penalty.
json generate_columns(const json& s, const Program& program, int64_t P, uint64_t seed) {
  const auto options = options_of(s, program);
  const auto gates = sample_gates(program.train.dense, P, static_cast<int64_t>(seed));
  auto own = options;
  own.gate = gates.pattern;
  const auto& X = program.train.X;
  const double rho = s.at("rhos").back(), beta = rho * beta_max(X, program.answers, own);
  const auto start = Clock::now();
  const auto run =
      solve_with_gates(X, program.answers, beta, gates, options, s.at("candidates"),
                       s.at("added_gates"), s.at("rounds"), static_cast<int64_t>(seed) + 1000);
  json result = {{"points", json::array({point_of(program, run.gates, rho, run.result,
                                                  seconds_since(start))})}};
  result["gates"] = run.gates.u1.size(0);
  result["sampled"] = run.sampled;
  result["found none"] = run.found_none;
  return result;
}

// ---- tables ----

struct Trained {
  std::string name;
  std::vector<json> logs;  ///< of the seeds
};

/// First logged update with at least 99 % that holds at the next one; NaN: none.
double first_at_99(const json& log, const char* key) {
  const auto& rows = log.at("log");
  for (size_t i = 0; i < rows.size(); ++i)
    if (rows[i].at(key) >= 99. && (i + 1 == rows.size() || rows[i + 1].at(key) >= 99.))
      return rows[i].at("update");
  return NAN;
}

Cell updates_to_99(const std::vector<json>& logs, const char* key) {
  std::vector<double> updates;
  for (const auto& log : logs)
    if (const double update = first_at_99(log, key); !std::isnan(update)) updates.push_back(update);
  if (updates.size() < logs.size())
    return fmt::format("> {} in {} of {}",
                       logs.front().at("log").back().at("update").get<int64_t>(),
                       logs.size() - updates.size(), logs.size());
  return spread_cell(updates, "{:.0f}");
}

/// How many times later the other equations are right.
Cell delay(const std::vector<json>& logs) {
  std::vector<double> ratios;
  for (const auto& log : logs) {
    const double ratio = first_at_99(log, "test") / first_at_99(log, "train");
    if (std::isnan(ratio)) return "–";
    ratios.push_back(ratio);
  }
  return spread_cell(ratios, "{:.1f}");
}

std::vector<double> last_of(const std::vector<json>& logs, const char* key) {
  std::vector<double> values;
  for (const auto& log : logs) values.push_back(log.at("log").back().at(key));
  return values;
}

/// Up to 12 evaluations per decade of updates.
std::vector<size_t> shown_rows(const json& log) {
  std::vector<size_t> shown;
  double next = 0;
  for (size_t i = 0; i < log.size(); ++i) {
    const double update = log[i].at("update");
    if (update < next && i + 1 < log.size()) continue;
    shown.push_back(i);
    next = update * std::pow(10., 1. / 12);
  }
  return shown;
}

ResultTable curve_table(const std::vector<Trained>& trained, const char* title) {
  ResultTable table = {
      .title = title,
      .columns = {"model"},
      .rows = {},
      .note =
          "Accuracy on the training equations and on the others; mean ± sd "
          "over seeds.",
      .figure =
          Figure{.axis = "accuracy (%)", .across = "updates", .form = "log-curves", .only = true}};
  const auto& rows = trained.front().logs.front().at("log");
  const auto shown = shown_rows(rows);
  for (const size_t i : shown)
    table.columns.push_back(std::to_string(rows[i].at("update").get<int64_t>()));
  for (const auto& t : trained)
    for (const char* key : {"train", "test"}) {
      std::vector<Cell> cells = {fmt::format("{}, {}", t.name, key)};
      for (const size_t i : shown) {
        std::vector<double> values;
        for (const auto& log : t.logs) values.push_back(log.at("log")[i].at(key));
        cells.push_back(spread_cell(values, "{:.1f}"));
      }
      table.rows.push_back(cells);
    }
  return table;
}

std::vector<double> numbers_of(const std::vector<json>& logs, const char* key) {
  std::vector<double> values;
  for (const auto& log : logs) values.push_back(log.at(key));
  return values;
}

ResultTable training_table(const std::vector<Trained>& trained, const char* title) {
  ResultTable table = {
      .title = title,
      .columns = {"model", "train 99 %", "test 99 %", "ratio", "train %", "test %", "seconds"},
      .rows = {},
      .note =
          "Updates to the first evaluation at 99 % that holds at the next one, and how many "
          "times later it is on the other equations; accuracies at the end; seconds without "
          "evaluation.",
      .figure = {}};
  for (const auto& t : trained)
    table.rows.push_back({t.name, updates_to_99(t.logs, "train"), updates_to_99(t.logs, "test"),
                          delay(t.logs), spread_cell(last_of(t.logs, "train"), "{:.1f}"),
                          spread_cell(last_of(t.logs, "test"), "{:.1f}"),
                          spread_cell(numbers_of(t.logs, "seconds"), "{:.1f}")});
  return table;
}

/// A number of point i of every seed.
Cell point_cell(const std::vector<json>& logs, const char* list, size_t i, const char* key,
                const char* format) {
  std::vector<double> values;
  for (const auto& log : logs) values.push_back(log.at(list)[i].at(key));
  return spread_cell(values, format);
}

ResultTable convex_table(const std::vector<Trained>& solved, double chance) {
  ResultTable table = {.title = "Convex programs along the penalty",
                       .columns = {"program", "ρ", "train %", "test %", "relative gap",
                                   "iterations", "active groups", "seconds"},
                       .rows = {},
                       .note = fmt::format("Accuracy; guessing gives {:.1f} %. A gap is certified "
                                           "whether or not the tolerance was reached.",
                                           chance),
                       .figure = {}};
  for (const auto& t : solved)
    for (size_t i = 0; i < t.logs.front().at("points").size(); ++i) {
      const auto value = [&](const char* key, const char* format) {
        return point_cell(t.logs, "points", i, key, format);
      };
      table.rows.push_back(
          {t.name, fmt::format("{:g}", t.logs.front().at("points")[i].at("rho").get<double>()),
           value("train", "{:.1f}"), value("test", "{:.1f}"), value("gap", "{:.1e}"),
           value("iterations", "{:.0f}"), value("groups", "{:.0f}"), value("seconds", "{:.1f}")});
    }
  return table;
}

ResultTable column_table(const std::vector<Trained>& solved) {
  ResultTable table = {.title = "Column generation at the last penalty",
                       .columns = {"program", "gates at the end", "sampled", "verdict"},
                       .rows = {},
                       .note =
                           "A verdict is about the gates that were sampled, in all rounds "
                           "together; gates that were not could still help.",
                       .figure = {}};
  for (const auto& t : solved) {
    if (!t.logs.front().contains("sampled")) continue;
    int64_t none = 0;
    for (const auto& log : t.logs) none += log.at("found none").get<bool>();
    table.rows.push_back(
        {t.name, spread_cell(numbers_of(t.logs, "gates"), "{:.0f}"),
         spread_cell(numbers_of(t.logs, "sampled"), "{:.0f}"),
         fmt::format("no violation in the last two rounds: {} of {} seeds", none, t.logs.size())});
  }
  return table;
}

ResultTable refit_table(const std::vector<Trained>& blocks) {
  ResultTable table = {
      .title = "The gated program on the frozen features of the blocks",
      .columns = {"model", "update", "train %", "test %", "relative gap", "seconds"},
      .rows = {},
      .note =
          "The last penalty, and the first gates of the last layer; gaps are "
          "certified whether or not the tolerance was reached.",
      .figure = {}};
  for (const auto& t : blocks) {
    const auto& points = t.logs.front().at("refits");
    for (size_t i = 0; i < points.size(); ++i)
      table.rows.push_back({t.name, std::to_string(points[i].at("update").get<int64_t>()),
                            point_cell(t.logs, "refits", i, "train", "{:.1f}"),
                            point_cell(t.logs, "refits", i, "test", "{:.1f}"),
                            point_cell(t.logs, "refits", i, "gap", "{:.1e}"),
                            point_cell(t.logs, "refits", i, "seconds", "{:.1f}")});
  }
  return table;
}

/// One name, all seeds of it.
using Compute = std::function<json(const Split&, uint64_t)>;
using Each = std::function<void(std::vector<Trained>&, const std::string&, const Compute&)>;

void run_programs(const json& s, std::vector<Trained>& solved, const Each& each) {
  const auto path = [&](const std::string& name, bool embedded, int64_t P) {
    each(solved, name, [&s, embedded, P](const Split& split, uint64_t seed) {
      return solve_convex_path(
          s, embedded ? embedded_program(s, split, seed) : one_hot_program(s, split), P, seed);
    });
  };
  path("no gates", false, 0);
  for (const int64_t P : s.at("gates").get<std::vector<int64_t>>())
    path(fmt::format("{} gates", P), false, P);
  for (const int64_t P : s.at("embedding_gates").get<std::vector<int64_t>>())
    path(fmt::format("{} gates, embeddings", P), true, P);
  const int64_t P = s.at("gates").front();
  each(solved, fmt::format("{} gates, Adam on Z", P), [&s, P](const Split& split, uint64_t seed) {
    return solve_by_adam(s, one_hot_program(s, split), P, seed);
  });
  each(solved, fmt::format("{} gates and more", P), [&s, P](const Split& split, uint64_t seed) {
    return generate_columns(s, one_hot_program(s, split), P, seed);
  });
}

Findings run(Context& context) {
  const json s = context.settings();
  const int64_t p = s.at("prime");
  std::vector<Trained> transformers, blocks, solved;
  for (const double fraction : s.at("fractions").get<std::vector<double>>()) {
    const Each each = [&](std::vector<Trained>& to, const std::string& name,
                          const Compute& compute) {
      Trained found = {fmt::format("{}, {:g} %", name, 100 * fraction), {}};
      for (const auto seed : context.seeds())
        found.logs.push_back(
            context.part(fmt::format("{}-{:g}-seed{}", name, fraction, seed),
                         [&](const auto&) { return compute(split_of(p, fraction, seed), seed); }));
      to.push_back(found);
    };
    run_programs(s, solved, each);
    for (const double decay : s.at("decays").get<std::vector<double>>()) {
      for (const int64_t layers : s.at("layers").get<std::vector<int64_t>>())
        each(transformers, fmt::format("{} layers, decay {:g}", layers, decay),
             [&](const Split& split, uint64_t seed) {
               return train_transformer(s, split, layers, decay, seed);
             });
      for (const int64_t layers : s.at("block_layers").get<std::vector<int64_t>>())
        for (const auto& gates : s.at("block_gates").get<std::vector<std::string>>())
          each(blocks, fmt::format("{} blocks, {} gates, decay {:g}", layers, gates, decay),
               [&](const Split& split, uint64_t seed) {
                 return train_blocks(s, split, layers, decay, gates, seed);
               });
    }
  }
  return std::vector<ResultTable>{
      curve_table(transformers, "Accuracy of the Transformer along its training, in %"),
      training_table(transformers, "The Transformer: updates to 99 %, and accuracies at the end"),
      convex_table(solved, 100 / static_cast<double>(p)),
      column_table(solved),
      curve_table(blocks, "Accuracy of convexified blocks along their training, in %"),
      training_table(blocks, "Convexified blocks, end to end"),
      refit_table(blocks)};
}

}  // namespace

Experiment modular() {
  return {
      .paper = kPaper,
      .name = "modular",
      .title = "Division modulo a prime",
      .claim =
          "A Transformer fits the training equations at about 1,000 updates and generalises "
          "only after more than 100,000, and convex training mitigates this grokking; checked "
          "here: accuracies along the training of a Transformer and of convexified blocks, and "
          "of certified convex programs on one-hot pairs and on embeddings.",
      .limits =
          "the delay itself at presets smoke and quick, whose training is truncated; the "
          "paper's split, penalty and optimiser, which it does not state. Blocks trained end to "
          "end are not a convex problem. Gates are a sample: others might do better.",
      .times = {"5 s", "10 min", "hours"},
      .settings = settings,
      .run = run};
}

}  // namespace kktorch::convex
