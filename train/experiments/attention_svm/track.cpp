#include "train/experiments/attention_svm/track.h"

#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <sstream>

#include "ops/svm/margin_tracker.h"
#include "train/common/files.h"
#include "train/common/hash.h"
#include "train/experiments/attention_svm/trials.h"
#include "train/experiments/context.h"
#include "train/loop/checkpoint.h"
#include "train/loop/interrupt.h"
#include "train/loop/metrics.h"
#include "train/loop/progress.h"
#include "train/loop/trainer.h"

namespace kktorch::attention_svm {
namespace {

namespace fs = std::filesystem;
using at::Tensor;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr double kCheckpointSeconds = 20;
constexpr size_t kCurvePoints = 40;

uint64_t hash_of(const Tensor& t, uint64_t start) {
  const auto flat = t.contiguous();
  return fnv1a({static_cast<const char*>(flat.const_data_ptr()), flat.nbytes()}, start);
}

/// Of everything that the run depends on besides its options.
std::string data_hash(const TrackData& data) {
  uint64_t hash = fnv1a("");
  for (const auto& t :
       {data.sets.x, data.sets.z, data.sets.row_ptr, data.labels, data.v, data.weights,
        data.sets.tok.value_or(Tensor()), data.selection.value_or(Tensor())})
    if (t.defined()) hash = hash_of(t, hash);
  return fmt::format("{:016x}", hash);
}

ordered_json settings_of(const TrackOptions& options, const TrackData& data) {
  return {{"data", data.file.string()},
          {"data_hash", data_hash(data)},
          {"queries", data.sets.z.size(0)},
          {"dx", data.sets.x.size(1)},
          {"dz", data.sets.z.size(1)},
          {"m", options.descent.m},
          {"head", options.head},
          {"lbd", options.lbd},
          {"loss", options.loss},
          {"learning_rate", options.descent.lr},
          {"ngd_eps", options.descent.eps},
          {"iterations", options.iterations},
          {"select", options.select},
          {"stop_cosine", options.stop_cosine},
          {"nuclear", options.nuclear},
          {"solve_after", options.solve_after},
          {"solve_seconds", options.solve_seconds},
          {"seeds", 1}};
}

MarginTrackerOptions tracker_options(const TrackOptions& options, const TrackData& data) {
  MarginTrackerOptions result{.x = data.sets.x,
                              .z = data.sets.z,
                              .row_ptr = data.sets.row_ptr,
                              .tok = data.sets.tok,
                              .optimal = options.select == "opt",
                              .nuclear = options.nuclear,
                              .solve_after = options.solve_after,
                              .solve_seconds = options.solve_seconds};
  if (data.selection)
    (data.selection->scalar_type() == at::kBool ? result.selected : result.alpha) = data.selection;
  return result;
}

csrc::AttentionModel model_of(const TrackOptions& options, const TrackData& data) {
  const auto& sets = data.sets;
  return {.sets = {.x = sets.x.const_data_ptr<double>(),
                   .z = sets.z.const_data_ptr<double>(),
                   .row_ptr = sets.row_ptr.const_data_ptr<int64_t>(),
                   .tok = sets.tok ? sets.tok->const_data_ptr<int64_t>() : nullptr,
                   .N = sets.x.size(0),
                   .dx = sets.x.size(1),
                   .Q = sets.z.size(0),
                   .dz = sets.z.size(1)},
          .labels = data.labels.const_data_ptr<double>(),
          .head = options.head == "relu"   ? csrc::AttentionHead::kRelu
                  : options.head == "quad" ? csrc::AttentionHead::kQuad
                                           : csrc::AttentionHead::kLinear,
          .v = data.v.const_data_ptr<double>(),
          .units = options.head == "relu" ? data.v.size(0) : 1,
          .lbd = options.lbd,
          .loss = options.loss == "exponential" ? csrc::MarginLoss::kExponential
                  : options.loss == "linear"    ? csrc::MarginLoss::kLinear
                                                : csrc::MarginLoss::kLogistic,
          .inputs = static_cast<double>(sets.z.size(0))};
}

/// The infimum of the risk: every query gives all its probability to the best score (linear head).
double best_risk(const csrc::AttentionModel& model) {
  if (model.head != csrc::AttentionHead::kLinear) return kUndefinedField;
  double sum = 0;
  for (int64_t q = 0; q < model.sets.Q; ++q) {
    double best = -std::numeric_limits<double>::infinity();
    for (int64_t e = model.sets.row_ptr[q]; e < model.sets.row_ptr[q + 1]; ++e) {
      double score = 0;
      for (int64_t c = 0; c < model.sets.dx; ++c) score += model.v[c] * model.sets.token(e)[c];
      best = std::max(best, model.labels[q] * score);
    }
    sum += csrc::margin_loss(model.loss, best);
  }
  return sum / model.inputs;
}

Tensor matrix(const std::vector<double>& values, int64_t rows, int64_t columns) {
  return at::tensor(values, at::kDouble).view({rows, columns});
}

std::vector<double> flat(const Tensor& t) {
  const auto values = t.to(at::kDouble).contiguous();
  const auto* begin = values.const_data_ptr<double>();
  return {begin, begin + values.numel()};
}

/// Descent and tracker, and their state in the folder of the run.
class TrackRun {
 public:
  TrackRun(const TrackOptions& options, const TrackData& data, fs::path folder)
      : options_(options),
        data_(data),
        folder_(std::move(folder)),
        model_(model_of(options, data)),
        loss_star_(best_risk(model_)),
        tracker_(tracker_options(options, data)),
        descent_(start()),
        sink_(folder_) {}

  /// @return why the run ended.
  std::string run() {
    sink_.keep_until(descent_.iteration() - 1, "step");
    Progress progress("svm track", options_.iterations, descent_.iteration());
    std::string ending = "all iterations";
    descent_.run(options_.iterations, [&](const AttentionDescent& at) {
      keep_state();
      const auto record = measure();
      sink_.append(row(record));
      progress.note(at.iteration(), fmt::format("loss {:.3e} certified cosine {}", record.loss,
                                                std::isnan(record.cos_certified)
                                                    ? "-"
                                                    : fmt::format("{:.4f}", record.cos_certified)));
      if (record.cos_certified > options_.stop_cosine)
        ending = fmt::format("certified cosine above {}", options_.stop_cosine);
      else if (at.underflow())
        ending = "gradient_underflow";
      else
        return true;
      return false;
    });
    save();
    return ending;
  }

 private:
  AttentionDescent start() {
    const auto file = folder_ / "checkpoint.pt";
    if (!fs::exists(file)) return {model_, options_.descent, flat(data_.weights)};
    const auto saved = load_checkpoint(file);
    tracker_.load_state(saved.optimizer);
    auto weights = flat(saved.model.at(options_.descent.m > 0 ? "K" : "W"));
    if (options_.descent.m > 0)
      for (const double value : flat(saved.model.at("Q"))) weights.push_back(value);
    return {model_, options_.descent, std::move(weights), saved.progress.at("iteration").toLong()};
  }

  void save() {
    const auto& sets = model_.sets;
    const int64_t m = options_.descent.m;
    TensorMap weights;
    if (m > 0)
      weights = {{"K", matrix(descent_.K(), sets.dx, m)}, {"Q", matrix(descent_.Q(), sets.dz, m)}};
    else
      weights = {{"W", matrix(descent_.W(), sets.dx, sets.dz)}};
    save_checkpoint(folder_ / "checkpoint.pt", {.model = weights,
                                                .optimizer = tracker_.state(),
                                                .rng = at::empty({0}, at::kByte),
                                                .progress = {{"iteration", descent_.iteration()}}});
  }

  /// @throws Interrupted after a signal, with the state of this iteration in the folder.
  void keep_state() {
    const auto now = std::chrono::steady_clock::now();
    const std::chrono::duration<double> since = now - saved_;
    if (interrupt_signal() == 0 && since.count() < kCheckpointSeconds) return;
    save();
    saved_ = now;
    stop_if_interrupted();
  }

  MarginRecord measure() {
    const auto& state = descent_.state();
    if (!std::isfinite(state.risk))
      throw DivergedError(fmt::format("svm track: expected a finite risk, but got {} at step {}",
                                      state.risk, descent_.iteration()));
    MarginStep step{.dlogits = at::tensor(state.g, at::kDouble),
                    .score = at::tensor(state.gamma, at::kDouble),
                    .loss = state.risk,
                    .loss_star = loss_star_};
    const auto& sets = model_.sets;
    if (const int64_t m = options_.descent.m; m > 0) {
      step.K = matrix(descent_.K(), sets.dx, m);
      step.Q = matrix(descent_.Q(), sets.dz, m);
    } else {
      step.W = matrix(descent_.W(), sets.dx, sets.dz);
    }
    return tracker_.step(step);
  }

  static ordered_json row(const MarginRecord& record) {
    ordered_json row;
    for (const auto& [name, value] : record.fields()) {
      const bool whole = name == "step";
      row[name] = whole ? ordered_json(static_cast<int64_t>(value)) : ordered_json(value);
      if (!std::isfinite(value)) row[name] = nullptr;
    }
    return row;
  }

  const TrackOptions& options_;
  const TrackData& data_;
  fs::path folder_;
  csrc::AttentionModel model_;
  double loss_star_;
  MarginTracker tracker_;
  AttentionDescent descent_;
  MetricsSink sink_;
  std::chrono::steady_clock::time_point saved_ = std::chrono::steady_clock::now();
};

/// At most kCurvePoints + 1 rows of the run, evenly spread up to the last one.
json shown_rows(const fs::path& folder) {
  std::vector<json> rows;
  std::istringstream lines(read_file(folder / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) rows.push_back(json::parse(line));
  const size_t last = rows.size() - 1, every = std::max<size_t>(1, last / kCurvePoints);
  json shown;
  for (size_t k = last % every; k <= last; k += every) shown.push_back(rows[k]);
  return shown;
}

Cell field_cell(const json& row, const std::string& name, const char* format) {
  const auto& value = row.at(name);
  return value.is_null() ? Cell("-") : number_cell(value.get<double>(), format);
}

ResultTable curve_table(const json& rows, const std::string& title, const std::string& axis,
                        const std::vector<std::pair<const char*, const char*>>& curves,
                        const std::string& note) {
  ResultTable table{.title = title,
                    .columns = {"curve"},
                    .rows = {},
                    .note = note,
                    .figure = Figure{.axis = axis, .across = "iteration", .form = "curves"}};
  for (const auto& row : rows) table.columns.push_back(row.at("step").dump());
  for (const auto& [name, curve] : curves) {
    auto& cells = table.rows.emplace_back(1, curve);
    for (const auto& row : rows) cells.push_back(field_cell(row, name, "{:.4g}"));
  }
  return table;
}

ResultTable last_table(const json& row, const std::string& ending) {
  ResultTable table{.title = "At the end",
                    .columns = {"field", "value"},
                    .rows = {{"ended by", ending}},
                    .note = "Fields of the margin tracker at the last iteration; - is not known.",
                    .figure = {}};
  for (const auto& [name, unused] : MarginRecord{}.fields())
    table.rows.push_back({name, field_cell(row, name, "{:.6g}")});
  return table;
}

std::vector<ResultTable> tables_of(const json& rows, const std::string& ending) {
  return {last_table(rows.back(), ending),
          curve_table(rows, "Bracket of the largest margin of the selection", "bound of 1/|Wmm|",
                      {{"lower", "lower"}, {"upper", "upper"}},
                      "Of the selection of each iteration; a new selection starts a new bracket."),
          curve_table(rows, "Directions and softmax", "value",
                      {{"cos_certified", "certified cosine"},
                       {"cos_frobenius", "cos(W, Wmm)"},
                       {"cos_nuclear", "cos(W, Wmm*)"},
                       {"probability_mean", "mean of max softmax"}},
                      "Cosines with solutions exist once the selection has stayed.")};
}

}  // namespace

Experiment track(const TrackOptions& options, const TrackData& data) {
  MarginTracker{tracker_options(options, data)};  // refuses bad data before there is a folder
  const auto run = [options, data](Context& context) {
    const auto found = context.part("run", [&](const fs::path& folder) {
      const auto ending = TrackRun(options, data, folder).run();
      return json{{"ending", ending}, {"rows", shown_rows(folder)}};
    });
    return Findings(tables_of(found.at("rows"), found.at("ending").get<std::string>()));
  };
  return {.paper = "attention-svm",
          .name = "track",
          .title = "Margin tracker along the training of one layer of attention",
          .claim =
              "Which tokens the layer selects, by which margin, and a bracket of the largest "
              "margin with these tokens, at every iteration of normalised gradient descent.",
          .limits =
              "anything about other data, unseen inputs, another selection, accuracy or "
              "generalisation; or that a plateau of a cosine is convergence.",
          .times = {},
          .settings = [settings = settings_of(options, data)](Preset) { return settings; },
          .run = run};
}

}  // namespace kktorch::attention_svm
