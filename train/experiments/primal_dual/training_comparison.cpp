#include "train/experiments/primal_dual/training_comparison.h"

#include <fmt/format.h>

#include "train/data/datasets.h"
#include "train/runs/methods.h"
#include "train/runs/run.h"

namespace kktorch::primal_dual {
namespace {

using nlohmann::json;

// The epoch at which a run is measured, and whether test data chose it.
struct Column {
  const char *key, *label;
};
constexpr Column kColumns[] = {{"final", "final epoch"},
                               {"best_validation", "best on validation"},
                               {"best_test", "best on test (optimistic)"}};

/// Test accuracies in percent of a finished run, by column.
std::vector<double> train(Context& context, const Dataset& dataset, const std::string& method,
                          uint64_t seed) {
  const auto config = comparison_run(context.settings(), dataset, method, seed);
  const auto name = fmt::format("{}-{}-seed{}", dataset.name, method, seed);
  const auto found = context.part(name, [&](const std::filesystem::path& folder) {
    const auto summary = train_run(folder / "run", config, dataset, name);
    if (!summary) throw Interrupted();
    json accuracies;
    for (const auto& column : kColumns)
      accuracies.push_back(100 * summary->at(column.key).at("test_accuracy").get<double>());
    return accuracies;
  });
  return found.get<std::vector<double>>();
}

std::vector<ResultTable> compare_on(Context& context, const Dataset& dataset) {
  std::vector<MethodValues> all, final_epoch;
  for (const auto& name : context.settings().at("methods")) {
    all.push_back({name, std::vector<std::vector<double>>(std::size(kColumns))});
    final_epoch.push_back({name, {{}}});
  }
  // Seeds outside: a comparison that is stopped early holds pairs.
  for (const auto seed : context.seeds()) {
    for (size_t m = 0; m < all.size(); ++m) {
      const auto accuracies = train(context, dataset, all[m].method, seed);
      for (size_t c = 0; c < accuracies.size(); ++c) all[m].values[c].push_back(accuracies[c]);
      final_epoch[m].values[0].push_back(accuracies[0]);
    }
  }
  std::vector<std::string> columns = {"method"};
  for (const auto& column : kColumns) columns.emplace_back(column.label);
  const auto sample = 100.0 / static_cast<double>(dataset.test.size());
  return {
      {.title = fmt::format("{}: test accuracy in %", dataset.name),
       .columns = columns,
       .rows = mean_rows(all, "{:.2f}"),
       .note = fmt::format("Mean ± sd over seeds; one test sample is {:.2f} %.", sample),
       .figure = Figure{.axis = "test accuracy in %", .across = "epoch"}},
      {.title = fmt::format("{}: difference of test accuracy in points, final epoch", dataset.name),
       .columns = {"difference", "mean [95 % interval]"},
       .rows = difference_rows(final_epoch, "{:.2f}"),
       .note = "Paired by seed, Student's t.",
       .figure = {}}};
}

}  // namespace

nlohmann::ordered_json comparison_settings(DataKind kind, std::vector<std::string> data,
                                           std::vector<std::string> methods, int64_t seeds) {
  const auto config = preset(kind);
  const auto& encoder = encoder_of(config.model);
  const auto& training = config.training;
  return {{"data", data},
          {"methods", methods},
          {"width", encoder.width},
          {"heads", encoder.heads},
          {"ffn", encoder.ffn},
          {"layers", encoder.layers},
          {"dropout", encoder.dropout},
          {"norm", encoder.norm},
          {"beta", encoder.beta_init},
          {"scales", "by the number of heads"},
          {"optimiser", "AdamW"},
          {"learning_rate", training.learning_rate},
          {"weight_decay", training.weight_decay},
          {"clip", training.clip},
          {"batch_size", training.batch_size},
          {"epochs", training.epochs},
          {"steps", training.steps},
          {"seeds", seeds}};
}

RunConfig comparison_run(const json& settings, const Dataset& dataset, const std::string& method,
                         uint64_t seed) {
  auto config = preset(dataset.kind);
  auto& encoder = encoder_of(config.model);
  config.method = method;
  encoder = method_named(method, encoder).encoder;
  auto& training = config.training;
  settings.at("epochs").get_to(training.epochs);
  settings.at("steps").get_to(training.steps);
  training.seed = seed;
  return complete_config(config, dataset);
}

std::vector<ResultTable> compare_methods(Context& context) {
  std::vector<ResultTable> tables;
  for (const auto& name : context.settings().at("data"))
    for (auto& table : compare_on(context, load_dataset(name))) tables.push_back(std::move(table));
  return tables;
}

}  // namespace kktorch::primal_dual
