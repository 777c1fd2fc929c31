// redundancy: how far the heads of one layer are apart (head_distance.h), before and after
// training, and how their attention looks.
#include <functional>
#include <optional>

#include "train/data/datasets.h"
#include "train/experiments/context.h"
#include "train/experiments/primal_dual/experiments.h"
#include "train/experiments/primal_dual/head_distance.h"
#include "train/experiments/primal_dual/training_comparison.h"
#include "train/runs/methods.h"
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

using DataSets = std::vector<std::pair<DataKind, std::string>>;

/// The data sets of a preset. Those of images and tokens take many minutes of training per model,
/// too long for quick.
DataSets data_sets(Preset preset) {
  const std::pair series(DataKind::kSeries, "JapaneseVowels"), images(DataKind::kImages, "digits"),
      tokens(DataKind::kTokens, "ListOps-small");
  return by_preset<DataSets>(preset, {series, images}, {series}, {series, images, tokens});
}

ordered_json settings(Preset preset) {
  using Names = std::vector<std::string>;
  ordered_json settings, models;
  const ordered_json smoke = {{"steps", 2}}, none = ordered_json::object();
  for (const auto& [kind, data] : data_sets(preset)) {
    settings["data"].push_back(data);
    settings["epochs"][data] = by_preset(preset, 1, 20, 100);
    models[model_name(kind)] = model_settings(kind, by_preset(preset, smoke, none, none));
  }
  settings["methods"] = by_preset<Names>(preset, {"softmax", "bn"}, {"softmax", "bn", "sh", "bnsh"},
                                         {"softmax", "bn", "sh", "bnsh"});
  settings.update(models);
  settings["seeds"] = by_preset(preset, 2, 5, 10);
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

/// What is kept of the finished run in `folder`; maps of the seed `mapped_seed`, if any.
json inspect(const std::filesystem::path& folder, const Dataset& dataset,
             std::optional<uint64_t> mapped_seed) {
  const auto [config, trained] = load_run(folder);
  json found = {{"untrained", distances(initial_model(config, dataset), dataset.test)},
                {"trained", distances(trained, dataset.test)}};
  if (mapped_seed == config.training.seed)
    found["maps"] = attention_maps(trained, dataset.test.narrow(0, 1));
  return found;
}

// ---- one data set

class RedundancyOn {
 public:
  /// @param with_maps  of the first seed.
  RedundancyOn(Context& context, const std::string& data, bool with_maps)
      : context_(context),
        dataset_(load_dataset(data)),
        methods_(context.settings().at("methods")),
        with_maps_(with_maps),
        trained_(train()) {}

  void add_to(Findings& findings) const {
    for (const auto& quantity : kQuantities) findings.tables.push_back(summary(quantity));
    findings.tables.push_back(by_layer());
    findings.tables.push_back(differences());
    for (size_t layer = 0; with_maps_ && layer < layers(); ++layer)
      findings.maps.push_back(maps(layer));
  }

 private:
  TrainedMethods train() const;
  const json& found(size_t method, size_t seed) const { return trained_.inspected[method][seed]; }
  size_t layers() const { return found(0, 0).at("trained").at("outputs").size(); }
  bool has(size_t method, const Quantity& quantity) const {
    return found(method, 0).at("trained").contains(quantity.key);
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
  Dataset dataset_;
  std::vector<std::string> methods_;
  bool with_maps_;
  TrainedMethods trained_;
};

TrainedMethods RedundancyOn::train() const {
  const auto base = base_config(context_.settings(), dataset_);
  std::vector<ComparedMethod> compared;
  for (const auto& name : methods_) {
    std::optional<uint64_t> mapped_seed;
    if (with_maps_ && is_mapped(name)) mapped_seed = context_.seeds().front();
    compared.push_back({.method = method_named(name, encoder_of(base.model)),
                        .inspect = [=](const auto& folder, const Dataset& dataset) {
                          return inspect(folder, dataset, mapped_seed);
                        }});
  }
  return train_methods(context_, dataset_, compared);
}

std::vector<double> RedundancyOn::over_seeds(size_t method, const char* state,
                                             const Quantity& quantity, size_t layer) const {
  std::vector<double> values;
  for (const auto& seed : trained_.inspected[method])
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
                           .form = "bars"}};
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
  for (size_t m = 0; m < methods_.size(); ++m)
    text += fmt::format("{}{} {:.1f}", m == 0 ? "" : ", ", methods_[m],
                        mean(trained_.final_epoch(m).values[0]));
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
      for (const auto& seed : trained_.inspected[m])
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
    grid.rows.push_back({methods_[m], found(m, 0).at("maps").at(layer)});
  }
  for (size_t h = 0; h < grid.rows.at(0).maps.size(); ++h)
    grid.columns.push_back(fmt::format("head {}", h + 1));
  return grid;
}

Findings run(Context& context) {
  Findings findings({});
  for (const auto& data : context.settings().at("data"))
    RedundancyOn(context, data, /*with_maps=*/findings.maps.empty()).add_to(findings);
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
      .times = {"9 s", "4 min", "10 h"},
      .settings = settings,
      .run = run};
}

}  // namespace kktorch::primal_dual
