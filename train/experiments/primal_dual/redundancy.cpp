// redundancy: how far the heads of one layer are apart (head_distance.h), before and after
// training, and how their attention looks.
#include <functional>

#include "train/data/datasets.h"
#include "train/experiments/context.h"
#include "train/experiments/primal_dual/experiments.h"
#include "train/experiments/primal_dual/head_distance.h"
#include "train/experiments/primal_dual/training_comparison.h"
#include "train/runs/run.h"

namespace kktorch::primal_dual {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

struct Quantity {
  const char *key, *symbol, *meaning;
};
constexpr Quantity kQuantities[] = {
    {"outputs", "R", "mean distance between the outputs of two heads"},
    {"relative", "R / |o|", "the same divided by the mean length of an output"},
    {"probabilities", "|P − P′| / √M", "mean distance between the maps of two heads of one scale"}};
constexpr const char* kStates[] = {"untrained", "trained"};
constexpr auto kFormat = "{:.3f}";

/// Whether the maps of a method are drawn.
bool is_mapped(const std::string& method) { return method == "softmax" || method == "bn"; }

/// The data sets of a preset. Those of images and tokens take many minutes of training per model,
/// too long for quick.
std::vector<std::pair<DataKind, const char*>> data_sets(Preset preset) {
  constexpr std::pair kSeries(DataKind::kSeries, "JapaneseVowels");
  constexpr std::pair kImages(DataKind::kImages, "digits");
  constexpr std::pair kTokens(DataKind::kTokens, "ListOps-small");
  if (preset == Preset::kSmoke) return {kSeries, kImages};
  if (preset == Preset::kQuick) return {kSeries};
  return {kSeries, kImages, kTokens};
}

/// The settings of a comparison on each data set: a list, in their order, where it has one value.
ordered_json settings(Preset preset) {
  const std::vector<std::string> all = {"softmax", "bn", "sh", "bnsh"}, first = {"softmax", "bn"};
  ordered_json settings;
  for (const auto& [kind, data] : data_sets(preset)) {
    auto one = comparison_settings(kind, {data}, by_preset(preset, first, all, all),
                                   by_preset(preset, 2, 5, 10));
    if (preset == Preset::kSmoke) one["steps"] = 2;
    if (preset == Preset::kQuick) one["epochs"] = 20;
    for (const auto& [name, value] : one.items()) {
      if (name == "methods" || name == "seeds")
        settings[name] = value;
      else
        settings[name].push_back(name == "data" ? value[0] : value);
    }
  }
  return settings;
}

// ---- one model

std::vector<AttentionBNSH> attention_layers(const Classifier& model) {
  const auto encoder = std::visit([](const auto& chosen) { return chosen->encoder; }, model);
  std::vector<AttentionBNSH> layers;
  for (const auto& layer : *encoder->layers) layers.push_back(layer->as<EncoderLayer>()->self_attn);
  return layers;
}

/// Runs `model` on `examples` and shows the heads of every layer and batch.
void watch_heads(const Classifier& model, const Examples& examples,
                 const std::function<void(size_t layer, const HeadRecord&)>& see) {
  auto layers = attention_layers(model);
  for (size_t l = 0; l < layers.size(); ++l)
    layers[l]->observer = [&see, l](const HeadRecord& record) { see(l, record); };
  evaluate_logits(module_of(model), forward_of(model), examples);
  for (auto& layer : layers) layer->observer = nullptr;
}

/// {quantity: [a number per layer]}, without a quantity that the model does not have.
json distances(const Classifier& model, const Examples& examples) {
  std::vector<HeadDistance> layers;
  for (const auto& layer : attention_layers(model)) layers.emplace_back(*layer);
  watch_heads(model, examples, [&](size_t l, const HeadRecord& record) { layers[l].add(record); });
  json found;
  for (const auto& layer : layers) {
    found["outputs"].push_back(layer.outputs());
    found["relative"].push_back(layer.relative());
    if (const auto distance = layer.probabilities()) found["probabilities"].push_back(*distance);
  }
  return found;
}

/// Of the first `rows` and columns, with four decimals.
MapMatrix matrix(const at::Tensor& values, int64_t rows) {
  const auto rounded = (values.to(at::kDouble) * 1e4).round() / 1e4;
  MapMatrix matrix;
  for (int64_t i = 0; i < rows; ++i) {
    const auto row = rounded[i].slice(0, 0, rows).contiguous();
    matrix.emplace_back(row.const_data_ptr<double>(), row.const_data_ptr<double>() + rows);
  }
  return matrix;
}

/// The probabilities of every head on one example, by layer and head, without its padding.
json attention_maps(const Classifier& model, const Examples& example) {
  std::vector<std::vector<MapMatrix>> maps;
  watch_heads(model, example, [&](size_t, const HeadRecord& record) {
    const auto weights = record.weights[0];
    const auto padded = record.key_padding.defined() ? record.key_padding.sum().item<int64_t>() : 0;
    auto& heads = maps.emplace_back();
    for (int64_t h = 0; h < weights.size(0); ++h)
      heads.push_back(matrix(weights[h], weights.size(1) - padded));
  });
  return maps;
}

/// What is kept of the finished run in `folder`.
json inspect(const std::filesystem::path& folder, const Dataset& dataset, bool with_maps) {
  const auto [config, trained] = load_run(folder);
  json found = {{"untrained", distances(initial_model(config, dataset), dataset.test)},
                {"trained", distances(trained, dataset.test)}};
  if (with_maps) found["maps"] = attention_maps(trained, dataset.test.narrow(0, 1));
  return found;
}

// ---- one data set

class RedundancyOn {
 public:
  /// @param place  of the data set in the settings; the maps are of the first one.
  RedundancyOn(Context& context, size_t place)
      : context_(context),
        settings_(context.settings()),
        place_(place),
        dataset_(load_dataset(settings_.at("data").at(place))),
        methods_(settings_.at("methods")) {}

  void add_to(Findings& findings) {
    run();
    for (const auto& quantity : kQuantities) findings.tables.push_back(summary(quantity));
    findings.tables.push_back(by_layer());
    findings.tables.push_back(differences());
    if (place_ > 0) return;
    for (size_t layer = 0; layer < layers(); ++layer) findings.maps.push_back(maps(layer));
  }

 private:
  void run();
  json run_one(const std::filesystem::path& folder, const std::string& method, uint64_t seed) const;
  size_t layers() const { return found_.at(0).at(0).at("trained").at("outputs").size(); }
  bool has(size_t method, const Quantity& quantity) const {
    return found_[method].at(0).at("trained").contains(quantity.key);
  }
  std::vector<double> over_seeds(size_t method, const char* state, const Quantity& quantity,
                                 size_t layer) const;
  std::vector<double> over_layers(size_t method, const char* state, const Quantity& quantity) const;
  std::string accuracies() const;

  ResultTable summary(const Quantity& quantity) const;
  ResultTable by_layer() const;
  ResultTable differences() const;
  MapGrid maps(size_t layer) const;

  Context& context_;
  json settings_;
  size_t place_;
  Dataset dataset_;
  std::vector<std::string> methods_;
  std::vector<std::vector<json>> found_;  // by method and seed
};

json RedundancyOn::run_one(const std::filesystem::path& folder, const std::string& method,
                           uint64_t seed) const {
  const json settings = {{"epochs", settings_.at("epochs").at(place_)},
                         {"steps", settings_.at("steps").at(place_)}};
  const auto config = comparison_run(settings, dataset_, method, seed);
  const auto name = fmt::format("{} {} seed {}", dataset_.name, method, seed);
  const auto summary = train_run(folder / "run", config, dataset_, name);
  if (!summary) throw Interrupted();
  const bool with_maps = place_ == 0 && is_mapped(method) && seed == context_.seeds().front();
  auto found = inspect(folder / "run", dataset_, with_maps);
  found["test_accuracy"] = summary->at("final").at("test_accuracy");
  return found;
}

void RedundancyOn::run() {
  found_.resize(methods_.size());
  for (const auto seed : context_.seeds()) {  // outside: a run that is stopped early holds pairs
    for (size_t m = 0; m < methods_.size(); ++m) {
      const auto name = fmt::format("{}-{}-seed{}", dataset_.name, methods_[m], seed);
      found_[m].push_back(context_.part(
          name, [&](const auto& folder) { return run_one(folder, methods_[m], seed); }));
    }
  }
}

std::vector<double> RedundancyOn::over_seeds(size_t method, const char* state,
                                             const Quantity& quantity, size_t layer) const {
  std::vector<double> values;
  for (const auto& seed : found_[method])
    values.push_back(seed.at(state).at(quantity.key).at(layer));
  return values;
}

/// Means over the seeds.
std::vector<double> RedundancyOn::over_layers(size_t method, const char* state,
                                              const Quantity& quantity) const {
  std::vector<double> means;
  for (size_t layer = 0; layer < layers(); ++layer)
    means.push_back(mean(over_seeds(method, state, quantity, layer)));
  return means;
}

ResultTable RedundancyOn::summary(const Quantity& quantity) const {
  std::vector<std::string> columns = {"model"};
  columns.insert(columns.end(), methods_.begin(), methods_.end());
  std::vector<std::vector<Cell>> rows;
  for (const auto* state : kStates) {
    auto& row = rows.emplace_back(1, state);
    for (size_t m = 0; m < methods_.size(); ++m)
      row.push_back(has(m, quantity) ? spread_cell(over_layers(m, state, quantity), kFormat) : "–");
  }
  return {.title = fmt::format("{}: {}, {}", dataset_.name, quantity.symbol, quantity.meaning),
          .columns = columns,
          .rows = rows,
          .note = fmt::format("Mean ± sd over layers, of means over {} seeds.",
                              context_.seeds().size()),
          .figure = Figure{.axis = fmt::format("{} (mean ± sd over layers)", quantity.symbol),
                           .across = "attention",
                           .bars = true}};
}

ResultTable RedundancyOn::by_layer() const {
  std::vector<std::string> columns = {"quantity", "method", "model"};
  for (size_t layer = 0; layer < layers(); ++layer)
    columns.push_back(fmt::format("layer {}", layer + 1));
  std::vector<std::vector<Cell>> rows;
  for (const auto& quantity : kQuantities) {
    for (size_t m = 0; m < methods_.size(); ++m) {
      for (const auto* state : kStates) {
        if (!has(m, quantity)) continue;
        rows.push_back({quantity.symbol, methods_[m], state});
        for (size_t layer = 0; layer < layers(); ++layer)
          rows.back().push_back(spread_cell(over_seeds(m, state, quantity, layer), kFormat));
      }
    }
  }
  return {.title = fmt::format("{}: distances between heads, by layer", dataset_.name),
          .columns = columns,
          .rows = rows,
          .note = fmt::format("Mean ± sd over seeds, on the valid tokens of {} test examples. {}",
                              dataset_.test.size(), accuracies()),
          .figure = {}};
}

std::string RedundancyOn::accuracies() const {
  std::string text;
  for (size_t m = 0; m < methods_.size(); ++m) {
    std::vector<double> percent;
    for (const auto& seed : found_[m])
      percent.push_back(100 * seed.at("test_accuracy").get<double>());
    text += fmt::format("{}{} {:.1f}", m == 0 ? "" : ", ", methods_[m], mean(percent));
  }
  return fmt::format("Test accuracy of the trained models in %: {}.", text);
}

ResultTable RedundancyOn::differences() const {
  std::vector<std::string> columns = {"difference"};
  std::vector<MethodValues> values;
  for (const auto& method : methods_) values.push_back({method, {}});
  for (const auto& quantity : kQuantities) {
    bool everywhere = true;
    for (size_t m = 0; m < methods_.size(); ++m) everywhere = everywhere && has(m, quantity);
    if (!everywhere) continue;
    columns.emplace_back(quantity.symbol);
    for (size_t m = 0; m < methods_.size(); ++m) {
      auto& seeds = values[m].values.emplace_back();
      for (const auto& seed : found_[m])
        seeds.push_back(mean(seed.at("trained").at(quantity.key).get<std::vector<double>>()));
    }
  }
  return {.title = fmt::format("{}: difference to {}, trained, mean over layers", dataset_.name,
                               methods_.front()),
          .columns = columns,
          .rows = difference_rows(values, "{:+.3f}"),
          .note = "Paired by seed, with the 95 % Student-t interval: one that holds 0 shows none.",
          .figure = {}};
}

MapGrid RedundancyOn::maps(size_t layer) const {
  MapGrid grid{.title = fmt::format("{}: attention of the heads of layer {}, trained",
                                    dataset_.name, layer + 1),
               .down = "query",
               .across = "key",
               .quantity = "probability",
               .columns = {},
               .rows = {},
               .note = fmt::format("First test example, seed {}; a scale of colours per method.",
                                   context_.seeds().front())};
  for (size_t m = 0; m < methods_.size(); ++m) {
    if (!is_mapped(methods_[m])) continue;
    grid.rows.push_back({methods_[m], found_[m].front().at("maps").at(layer)});
  }
  for (size_t h = 0; h < grid.rows.at(0).maps.size(); ++h)
    grid.columns.push_back(fmt::format("head {}", h + 1));
  return grid;
}

Findings run(Context& context) {
  Findings findings({});
  for (size_t place = 0; place < context.settings().at("data").size(); ++place)
    RedundancyOn(context, place).add_to(findings);
  return findings;
}

}  // namespace

Experiment redundancy() {
  return {
      .paper = kPaper,
      .name = "redundancy",
      .title = "Distances between the heads of a layer",
      .claim =
          "The paper reports that the heads of Attention-BN, of Attention-SH and of both are "
          "further apart than those of softmax attention, by the mean L2 distance between heads "
          "over the layers of models trained on the Retrieval task of the Long Range Arena; "
          "checked "
          "here in kind, on other data, with distances between the outputs of heads.",
      .limits =
          "the paper's numbers: it does not fix what its distance is normalised by, and its task "
          "is not run here. A larger distance is no better model. Every head has value channels of "
          "its own, so that outputs of heads with one and the same attention are apart as well, "
          "and R grows with the length of the outputs; the distance between maps has neither "
          "fault, but compares heads of one scale only. Untrained models are measured in "
          "evaluation mode, where batch normalisation still is the identity.",
      .times = {"9 s", "3 min", "10 h"},
      .settings = settings,
      .run = run};
}

}  // namespace kktorch::primal_dual
