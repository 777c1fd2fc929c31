// student_teacher: a layer of a random Transformer, and students trained on its frozen features.
//
//     X_i: input of the last attention sublayer    y_i: its output at row 0, projected to c numbers
//     min sum_i |f(X_i) - y_i|^2 / 2 + beta (penalty of the student)        beta = rho beta_max
//
// Students: softmax attention (2) with and without decay of Q and K; the factored network (11) by
// Adam on a softmax of logits and by palm with escapes; the convex program (12) by the certified
// solver and by full-batch Adam on Z. The last four share one objective; softmax attention has
// another regulariser, and is compared by data loss and test error alone.
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <numbers>

#include "models/convex_attention.h"
#include "ops/convex_attention.h"
#include "ops/convex_solver.h"
#include "ops/convex_training.h"
#include "ops/group_soft_threshold.h"
#include "train/experiments/context.h"
#include "train/experiments/convex/experiments.h"
#include "train/loop/seed_stream.h"

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
  return {{"width", by_preset(preset, 16, 32, 64)},
          {"tokens", by_preset(preset, 8, 16, 32)},
          {"outputs", by_preset(preset, 4, 8, 16)},
          {"vocabulary", 64},
          {"layers", 4},
          {"teacher_heads", 4},
          {"samples", by_preset(preset, 200, 1000, 2000)},
          {"test_samples", by_preset(preset, 200, 500, 1000)},
          {"student_heads", 4},
          {"rhos",
           by_preset<std::vector<double>>(preset, {0.1}, {0.3, 0.1, 0.03}, {0.3, 0.1, 0.03, 0.01})},
          {"rates",
           by_preset<std::vector<double>>(preset, {3e-3}, {1e-2, 1e-3}, {1e-2, 3e-3, 1e-3, 3e-4})},
          {"steps", by_preset(preset, 100, 300, 2000)},
          {"cycles", by_preset(preset, 100, 150, 1500)},
          {"tolerance", 1e-6},
          {"seeds", by_preset(preset, 1, 2, 3)}};
}

// ---- the teacher ----

Tensor layer_norm(const Tensor& x) {
  return (x - x.mean(-1, true)) / (x.var(-1, false, true) + 1e-12).sqrt();
}

/// Post-LN Transformer with random weights; the logits of every layer have standard deviation 2.
class Teacher {
 public:
  Teacher(const json& s, uint64_t seed)
      : n_(s.at("tokens")),
        d_(s.at("width")),
        heads_(s.at("teacher_heads")),
        vocabulary_(s.at("vocabulary")),
        generator_(generator_of(seed, "student_teacher")) {
    embedding_ = normal({vocabulary_, d_}, 1);
    position_ = normal({n_, d_}, 1);
    const auto width = static_cast<double>(d_);
    for (int64_t l = 0; l < s.at("layers").get<int64_t>(); ++l) {
      Layer layer;
      for (auto* w : {&layer.q, &layer.k, &layer.v, &layer.o})
        *w = normal({d_, d_}, 1 / std::sqrt(width));
      layer.up = normal({d_, 4 * d_}, std::sqrt(2 / width));
      layer.down = normal({4 * d_, d_}, 1 / std::sqrt(4 * width));
      layers_.push_back(layer);
    }
    const auto q = at::linalg_qr(normal({d_, s.at("outputs").get<int64_t>()}, 1));
    readout_ = std::get<0>(q);
    scale_logits();
  }

  /// Token 0 stands at position 0; the others follow Zipf's law.
  Tensor tokens(int64_t count) {
    const auto weight = 1 / torch::arange(1, vocabulary_, at::kDouble);
    auto ids = torch::multinomial(weight, count * (n_ - 1), true, generator_) + 1;
    return torch::cat({torch::zeros({count, 1}, at::kLong), ids.view({count, n_ - 1})}, 1);
  }

  struct Examples {
    Tensor X, Y, map;  ///< [N, n, d], [N, c], attention of row 0 over heads [N, n]
  };
  Examples examples(int64_t count) {
    auto x = embed(tokens(count));
    for (size_t l = 0; l + 1 < layers_.size(); ++l) x = block(x, layers_[l]);
    const auto [out, map] = attention(x, layers_.back());
    return {x, out.select(1, 0).matmul(readout_), map.select(2, 0).mean(1)};
  }

 private:
  struct Layer {
    Tensor q, k, v, o, up, down;
    double scale = 1;
  };

  Tensor normal(at::IntArrayRef size, double sd) {
    return sd * torch::randn(size, generator_, at::kDouble);
  }
  Tensor embed(const Tensor& ids) const {
    return layer_norm(embedding_.index_select(0, ids.flatten()).view({-1, n_, d_}) + position_);
  }
  Tensor split(const Tensor& x) const {
    return x.view({-1, n_, heads_, d_ / heads_}).transpose(1, 2);
  }
  Tensor logits(const Tensor& x, const Layer& layer) const {
    return split(x.matmul(layer.q)).matmul(split(x.matmul(layer.k)).transpose(2, 3));
  }
  std::pair<Tensor, Tensor> attention(const Tensor& x, const Layer& layer) const {
    const auto map = (layer.scale * logits(x, layer)).softmax(-1);
    const auto mixed = map.matmul(split(x.matmul(layer.v))).transpose(1, 2).reshape({-1, n_, d_});
    return {mixed.matmul(layer.o), map};
  }
  Tensor block(const Tensor& x, const Layer& layer) const {
    const auto middle = layer_norm(x + attention(x, layer).first);
    return layer_norm(middle + middle.matmul(layer.up).relu().matmul(layer.down));
  }
  void scale_logits() {
    auto x = embed(tokens(256));
    for (auto& layer : layers_) {
      layer.scale = 2 / logits(x, layer).std(-1).mean().item<double>();
      x = block(x, layer);
    }
  }

  int64_t n_, d_, heads_, vocabulary_;
  at::Generator generator_;
  Tensor embedding_, position_, readout_;
  std::vector<Layer> layers_;
};

/// Standardised by the training samples: Y centred, one scale for Y and one for X.
struct Data {
  Tensor X, Y, test_X, test_Y, map;  ///< map: mean attention of the teacher's row 0, [n]
};

Data draw(const json& s, uint64_t seed) {
  Teacher teacher(s, seed);
  const auto train = teacher.examples(s.at("samples")),
             test = teacher.examples(s.at("test_samples"));
  const auto size = train.X.square().sum(-1).mean().sqrt(), mean = train.Y.mean(0);
  const auto spread = (train.Y - mean).square().mean().sqrt();
  return {(train.X / size).contiguous(), ((train.Y - mean) / spread).contiguous(),
          (test.X / size).contiguous(), ((test.Y - mean) / spread).contiguous(), test.map.mean(0)};
}

// ---- students ----

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double half_loss(const Tensor& A, const Tensor& Y) {
  return (A - Y).square().sum().item<double>() / 2;
}

/// Loss per sample and explained share.
json error_of(const Tensor& A, const Tensor& Y, const std::string& part) {
  const double loss = half_loss(A, Y), none = half_loss(torch::zeros_like(Y), Y);
  return {{part + " loss", loss / static_cast<double>(Y.size(0))}, {part + " R2", 1 - loss / none}};
}

double cosine(double lr, int64_t step, int64_t steps) {
  return lr *
         (1 + std::cos(std::numbers::pi * static_cast<double>(step) / static_cast<double>(steps))) /
         2;
}

json curve_point(double seconds, double value) { return json::array({seconds, value}); }

/// Full-batch Adam on softmax attention, in float32.
json softmax_student(const json& s, const Data& data, double beta, double lr, bool decay_qk,
                     uint64_t seed) {
  seed_torch(seed, "softmax student");
  const int64_t d = data.X.size(2), heads = s.at("student_heads"), steps = s.at("steps");
  SoftmaxAttention model(d, data.Y.size(1), heads, d / heads, 1 / std::sqrt(double(d)));
  const auto X = data.X.to(at::kFloat), Y = data.Y.to(at::kFloat);
  torch::optim::Adam optimiser(model->parameters(), torch::optim::AdamOptions(lr));
  const auto start = Clock::now();
  json curve = json::array();
  for (int64_t step = 0; step < steps; ++step) {
    if (step % 50 == 0) stop_if_interrupted();
    for (auto& group : optimiser.param_groups()) group.options().set_lr(cosine(lr, step, steps));
    const auto loss = (model(X) - Y).square().sum() / 2;
    auto decay = model->V.square().sum() + model->O.square().sum();
    if (decay_qk) decay = decay + model->Q.square().sum() + model->K.square().sum();
    optimiser.zero_grad();
    (loss + beta / 2 * decay).backward();
    optimiser.step();
    if (step % 10 == 0) curve.push_back(curve_point(seconds_since(start), loss.item<double>()));
  }
  const double seconds = seconds_since(start);
  const torch::NoGradGuard no_grad;
  const auto test_X = data.test_X.to(at::kFloat);
  const auto maps = model->maps(test_X);  // [N, h, n]
  const auto mean = maps.mean(0).mean(0).to(at::kDouble).contiguous();
  const double entropy =
      -torch::xlogy(maps, maps).sum(-1).mean().item<double>() / std::log(double(data.X.size(1)));
  json result = {{"seconds", seconds}, {"curve", curve}, {"entropy", entropy}};
  result["map"] = std::vector<double>(mean.const_data_ptr<double>(),
                                      mean.const_data_ptr<double>() + mean.numel());
  result.update(error_of(model(X).to(at::kDouble), data.Y, "train"));
  result.update(error_of(model(test_X).to(at::kDouble), data.test_Y, "test"));
  return result;
}

/// What the students of the convex objective report. `bound` is a lower bound of the optimum.
json effective_student(const Data& data, const Tensor& Z, double objective, double bound,
                       double seconds, const json& curve) {
  const auto size = Z.norm(2, {-1});
  const auto share = (size.sum(0).sum(0) / size.sum().clamp_min(1e-300)).contiguous();
  json result = {{"seconds", seconds},
                 {"curve", curve},
                 {"objective", objective},
                 {"bound", bound},
                 {"active groups", size.gt(0).sum().item<int64_t>()},
                 {"active tokens", size.gt(0).flatten(0, 1).any(0).sum().item<int64_t>()}};
  result["map"] = std::vector<double>(share.const_data_ptr<double>(),
                                      share.const_data_ptr<double>() + share.numel());
  result.update(error_of(convex_predict(data.X, Z), data.Y, "train"));
  result.update(error_of(convex_predict(data.test_X, Z), data.test_Y, "test"));
  return result;
}

json curve_of(const Tensor& history) {
  json curve = json::array();
  const auto rows = history.accessor<double, 2>();
  for (int64_t i = 0; i < history.size(0); ++i)
    curve.push_back(curve_point(rows[i][1], rows[i][2]));
  return curve;
}

json convex_student(const json& s, const Data& data, double beta) {
  ConvexOptions options;
  options.tol_rel = s.at("tolerance");
  const auto start = Clock::now();
  const auto r = solve(data.X, data.Y, beta, options);
  auto result = effective_student(data, r.Z, r.F, r.D, seconds_since(start), curve_of(r.history));
  result["lip"] = r.lip;
  return result;
}

json factored_student(const json& s, const Data& data, double beta, double lr, bool palm,
                      int64_t heads, uint64_t seed) {
  FactoredOptions options;
  options.heads = heads;
  options.optimiser = palm ? "palm" : "adam_softmax";
  options.escape = palm;
  options.max_escapes = 2;
  options.lr = lr;
  options.max_iter = s.at(palm ? "cycles" : "steps");
  options.tol_rel = s.at("tolerance");
  options.seed = static_cast<int64_t>(seed);
  options.progress = [](int64_t, double) {
    stop_if_interrupted();
    return true;
  };
  const auto start = Clock::now();
  const auto r = train_factored(data.X, data.Y, beta, options);
  return effective_student(data, heads_to_z(r.heads, 1), r.objective, r.D, seconds_since(start),
                           curve_of(r.history));
}

/// Full-batch Adam on Z; its zeros come from one proximal step at the end.
json adam_student(const json& s, const Data& data, double beta, double lr, double lip) {
  const int64_t c = data.Y.size(1), n = data.X.size(1), d = data.X.size(2), steps = s.at("steps");
  const auto Phi = data.X.flatten(1);
  auto Z = torch::zeros({c, n * d}, at::kDouble), first = torch::zeros_like(Z),
       second = torch::zeros_like(Z);
  const auto gradient = [&] { return (Phi.matmul(Z.t()) - data.Y).t().matmul(Phi); };
  const auto norms = [&] { return Z.view({c, n, d}).norm(2, {-1}, true); };
  const auto start = Clock::now();
  json curve = json::array();
  for (int64_t step = 1; step <= steps; ++step) {
    if (step % 50 == 0) stop_if_interrupted();
    const auto size = norms();
    const auto unit = torch::where(size > 0, Z.view({c, n, d}) / size, 0.).view({c, n * d});
    const auto g = gradient() + beta * unit;
    first = 0.9 * first + 0.1 * g;
    second = 0.999 * second + 0.001 * g * g;
    const auto t = static_cast<double>(step);
    Z = Z - cosine(lr, step, steps) / (1 - std::pow(0.9, t)) * first /
                ((second / (1 - std::pow(0.999, t))).sqrt() + 1e-8);
    if (step % 10 == 0)
      curve.push_back(curve_point(seconds_since(start), half_loss(Phi.matmul(Z.t()), data.Y) +
                                                            beta * norms().sum().item<double>()));
  }
  const auto moved = (Z - gradient() / lip).view({1, c, n, d});
  const auto final = group_soft_threshold(moved, torch::full({}, beta / lip, at::kDouble));
  const double seconds = seconds_since(start);
  const auto certificate = certify(data.X, data.Y, beta, final);
  return effective_student(data, final, certificate.F, certificate.D, seconds, curve);
}

/// The learning rate whose student is best on a fifth of the training samples.
double chosen_rate(const json& s, const Data& data,
                   const std::function<json(const Data&, double)>& student) {
  const std::vector<double> rates = s.at("rates");
  if (rates.size() == 1) return rates[0];
  const int64_t N = data.X.size(0), kept = N - N / 5;
  const Data part = {data.X.slice(0, 0, kept).contiguous(), data.Y.slice(0, 0, kept).contiguous(),
                     data.X.slice(0, kept).contiguous(), data.Y.slice(0, kept).contiguous(),
                     data.map};
  double best = INFINITY, rate = rates[0];
  for (const double lr : rates) {
    const double loss = student(part, lr).at("test loss");
    if (!(loss < best)) continue;
    best = loss;
    rate = lr;
  }
  return rate;
}

/// All students of one seed and one penalty.
json compare(const json& s, uint64_t seed, double rho) {
  const auto data = draw(s, seed);
  const double beta = rho * beta_max(data.X, data.Y);
  json students = json::array();
  const auto add = [&](const std::function<json(const Data&, double)>& student) {
    const double rate = chosen_rate(s, data, student);
    auto result = student(data, rate);
    result["rate"] = rate;
    students.push_back(result);
  };
  for (const bool decay : {true, false})
    add([&](const Data& d, double lr) { return softmax_student(s, d, beta, lr, decay, seed); });
  const auto convex = convex_student(s, data, beta);
  const int64_t heads = std::max<int64_t>(convex.at("active groups").get<int64_t>(), 8);
  add([&](const Data& d, double lr) {
    return factored_student(s, d, beta, lr, false, heads, seed);
  });
  students.push_back(factored_student(s, data, beta, 0, true, heads + heads / 2, seed));
  students.push_back(convex);
  const double lip = convex.at("lip").get<double>() > 0 ? convex.at("lip").get<double>() : 1;
  add([&](const Data& d, double lr) { return adam_student(s, d, beta, lr, lip); });
  json result = {{"students", students}, {"beta", beta}};
  result["teacher map"] =
      std::vector<double>(data.map.contiguous().const_data_ptr<double>(),
                          data.map.contiguous().const_data_ptr<double>() + data.map.numel());
  return result;
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

/// F of a student after `seconds`: the lowest so far.
double value_after(const json& curve, double seconds) {
  double value = NAN;
  for (const auto& point : curve)
    if (point[0].get<double>() <= seconds)
      value = std::isnan(value) ? point[1].get<double>() : std::min(value, point[1].get<double>());
  return value;
}

ResultTable time_table(const Runs& runs, double rho) {
  const auto& run = runs.back().front();
  const double bound = run.at("students")[kConvex].at("bound");
  ResultTable table = {
      .title = fmt::format("Distance from the optimum against time, ρ = {:g}", rho),
      .columns = {"student"},
      .rows = {},
      .note =
          "(F − D) / D with the bound D of the certified solver: the optimum is "
          "not below D, so that the distance is at most this. First seed; a "
          "dash where nothing was logged yet.",
      .figure = Figure{.axis = "relative distance, at most",
                       .across = "seconds",
                       .logarithmic = true,
                       .form = "curves"}};
  std::vector<double> times;
  for (double t = 0.01; t < 200; t *= std::sqrt(10.)) times.push_back(t);
  for (const double t : times) table.columns.push_back(fmt::format("{:.2g}", t));
  for (size_t a = 2; a < std::size(kStudents); ++a) {
    std::vector<Cell> row = {kStudents[a]};
    for (const double t : times) {
      const double F = value_after(run.at("students")[a].at("curve"), t);
      row.push_back(std::isnan(F) ? Cell("–")
                                  : number_cell(std::max((F - bound) / bound, 1e-16), "{:.1e}"));
    }
    table.rows.push_back(row);
  }
  return table;
}

ResultTable map_table(const Runs& runs, double rho) {
  const auto& run = runs.back().front();
  const std::vector<double> teacher = run.at("teacher map");
  ResultTable table = {.title = fmt::format("Where attention lies, ρ = {:g}", rho),
                       .columns = {"student"},
                       .rows = {},
                       .note =
                           "Mean attention of row 0 over test samples and heads, of softmax "
                           "students; the share of a token in the sum of norms, of convex ones. "
                           "First seed.",
                       .figure = Figure{.axis = "share", .across = "token", .form = "bars"}};
  for (size_t k = 0; k < teacher.size(); ++k) table.columns.push_back(std::to_string(k));
  const auto add = [&](const std::string& name, const std::vector<double>& map) {
    std::vector<Cell> row = {name};
    for (const double share : map) row.push_back(number_cell(share, "{:.3f}"));
    table.rows.push_back(row);
  };
  add("teacher", teacher);
  for (const int64_t a : {int64_t{0}, kConvex}) add(kStudents[a], run.at("students")[a].at("map"));
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

ResultTable token_table(const Runs& runs, const std::vector<double>& rhos, int64_t tokens) {
  ResultTable table = {.title = "Sparsity and entropy",
                       .columns = {"quantity"},
                       .rows = {},
                       .note = fmt::format("Of {} tokens. Entropy of softmax maps as a share of "
                                           "that of uniform attention.",
                                           tokens),
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
  return table;
}

std::vector<ResultTable> run(Context& context) {
  const json s = context.settings();
  const std::vector<double> rhos = s.at("rhos");
  Runs runs;
  for (const double rho : rhos) {
    runs.emplace_back();
    for (const auto seed : context.seeds())
      runs.back().push_back(context.part(fmt::format("rho{:g}-seed{}", rho, seed),
                                         [&](const auto&) { return compare(s, seed, rho); }));
  }
  return {student_table(runs, rhos, "Test loss per sample", "test loss", "{:.4f}", false,
                        "Half squared error on new samples, standardised targets; mean ± sd over "
                        "seeds. Learning rates were chosen on a fifth of the training samples."),
          student_table(runs, rhos, "Training loss per sample", "train loss", "{:.4f}", false,
                        "Without the penalty."),
          student_table(runs, rhos, "R² on new samples", "test R2", "{:.3f}", false,
                        "1 would be exact, 0 the mean."),
          student_table(runs, rhos, "Seconds of training", "seconds", "{:.2f}", true,
                        "The chosen rate alone, without evaluation."),
          time_table(runs, rhos.back()),
          certificate_table(runs, rhos),
          token_table(runs, rhos, s.at("tokens")),
          map_table(runs, rhos.back())};
}

}  // namespace

Experiment student_teacher() {
  return {.paper = kPaper,
          .name = "student_teacher",
          .title = "Students of a frozen attention layer",
          .claim =
              "On frozen features of a Transformer, the convex student converges faster and has "
              "lower training and test error than softmax attention, whose maps are near uniform "
              "while convex ones are sparse over tokens; checked here with a random teacher: "
              "losses, certified gaps against time, and maps.",
          .limits =
              "anything about BERT: the teacher is random and synthetic. Softmax attention has "
              "another regulariser, so that only data loss and test error compare. Times are of "
              "these programs on this machine.",
          .times = {"5 s", "10 min", "hours"},
          .settings = settings,
          .run = run};
}

}  // namespace kktorch::convex
