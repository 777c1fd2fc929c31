// listops: the value of nested list operations, generated (train/data/listops.h).
#include "train/data/listops.h"

#include <fmt/format.h>

#include "train/experiments/primal_dual/experiments.h"
#include "train/experiments/primal_dual/training_comparison.h"

namespace kktorch::primal_dual {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr auto kName = "ListOps";

ordered_json settings(Preset preset) {
  const auto small = *listops_preset("ListOps-small");
  const ordered_json smoke = {{"steps", 2}},
                     // Quick: a learning rate that moves in its few steps.
      quick = {{"steps", 1000}, {"learning_rate", 1e-3}}, full = ordered_json::object();
  return {{"data", {kName}},
          {"min_length", by_preset<int64_t>(preset, 10, 20, small.min_length)},
          {"max_length", by_preset<int64_t>(preset, 30, 60, small.max_length)},
          {"train_size", by_preset<int64_t>(preset, 64, 8000, small.train_size)},
          {"validation_size", by_preset<int64_t>(preset, 32, 1000, small.validation_size)},
          {"test_size", by_preset<int64_t>(preset, 32, 1000, small.test_size)},
          {"methods", compared_names(preset)},
          {"tokens", model_settings(DataKind::kTokens, by_preset(preset, smoke, quick, full))},
          {"seeds", by_preset(preset, 2, 3, 5)}};
}

Dataset expressions(const json& settings) {
  return generate_listops(kName, {.min_length = settings.at("min_length"),
                                  .max_length = settings.at("max_length"),
                                  .train_size = settings.at("train_size"),
                                  .validation_size = settings.at("validation_size"),
                                  .test_size = settings.at("test_size")});
}

std::vector<ResultTable> run(Context& context) {
  const auto dataset = expressions(context.settings());
  auto tables = compare_on(context, dataset);
  tables.front().note +=
      fmt::format(" Expressions with seed {} and checksum {}.", dataset.origin.at("seed").dump(),
                  dataset.origin.at("checksum").get<std::string>());
  return tables;
}

}  // namespace

Experiment listops() {
  return {.paper = kPaper,
          .name = "listops",
          .title = "ListOps: attentions in a classifier of token sequences",
          .claim =
              "The paper reports that Attention-BN, Attention-SH and both together do at least as "
              "well as softmax attention on the Long Range Arena, ListOps among its tasks; checked "
              "here on shorter expressions, which are generated.",
          .limits =
              "anything about the Long Range Arena: the expressions are shorter and fewer than its "
              "own, and not its files. Accuracy must be read next to that of the most frequent "
              "class. Scales, beta and epsilon are ours. The column \"best on test\" takes the "
              "epoch from the test data.",
          .times = {"3 s", "6 min", "7 h"},
          .settings = settings,
          .run = run};
}

}  // namespace kktorch::primal_dual
