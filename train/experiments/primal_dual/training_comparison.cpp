#include "train/experiments/primal_dual/training_comparison.h"

#include <fmt/format.h>

#include "models/cost_model.h"
#include "train/data/datasets.h"

namespace kktorch::primal_dual {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

/// Replaces the values in `target` whose names `settings` has.
void take(json& target, const json& settings) {
  for (auto& [name, value] : target.items())
    if (settings.contains(name)) value = settings.at(name);
}

json train(Context& context, const Dataset& dataset, const ComparedMethod& compared,
           RunConfig config, uint64_t seed) {
  config.method = compared.method.label;
  encoder_of(config.model) = compared.method.encoder;
  config.training.seed = seed;
  const auto name = fmt::format("{}-{}-seed{}", dataset.name, config.method, seed);
  return context.part(name, [&](const std::filesystem::path& part) {
    const auto folder = part / "run";
    const auto summary =
        train_run(folder, complete_config(config, dataset), dataset, name, compared.change);
    if (!summary) throw Interrupted();
    json accuracy;
    for (const auto& epoch : kChosenEpochs)
      accuracy.push_back(100 * summary->at(epoch.key).at("test_accuracy").get<double>());
    return json{{"accuracy", accuracy},
                {"inspected", compared.inspect ? compared.inspect(folder, dataset) : json()}};
  });
}

/// FLOPs of one block by the cost model (models/cost_model.h).
double flops(const EncoderOptions& encoder, int64_t tokens) {
  const BlockShape shape{.tokens = tokens, .width = encoder.width, .ffn = encoder.ffn};
  const AttentionBNSHOptions attention{.variant = encoder.attention};
  const double left = attention.pools() ? pooled_fraction(encoder.scales) : 1.0;
  return attention.is_linear() ? linear_block_flops(shape, encoder.heads, left)
                               : block_flops(shape, left);
}

/// Tokens of the longest example of a data set, as the encoder sees them.
int64_t tokens_of(const RunConfig& config, const Dataset& dataset) {
  const auto model = make_classifier(complete_config(config, dataset).model);
  return module_of(model).named_parameters()["encoder.position"].size(0);
}

ResultTable cost_table(const Dataset& dataset, const RunConfig& base,
                       const std::vector<ComparedMethod>& methods, const TrainedMethods& trained) {
  const auto tokens = tokens_of(base, dataset);
  const double reference = flops(methods.front().method.encoder, tokens);
  std::vector<std::vector<Cell>> rows;
  for (size_t m = 0; m < methods.size(); ++m)
    rows.push_back({methods[m].method.label,
                    number_cell(flops(methods[m].method.encoder, tokens) / reference, "{:.3f}"),
                    spread_cell(trained.final_epoch(m).values[0], "{:.2f}")});
  return {.title = fmt::format("{}: test accuracy against cost, final epoch", dataset.name),
          .columns = {"method", "relative cost", "test accuracy [%]"},
          .rows = rows,
          .note = fmt::format("Cost: floating-point operations of one encoder block on {} tokens "
                              "by the cost model, relative to {}; not a measured time. The "
                              "normalisation of Attention-BN is left out.",
                              tokens, methods.front().method.label),
          .figure = Figure{.axis = "test accuracy, final epoch [%]",
                           .across = fmt::format("operations of a block, relative to {}",
                                                 methods.front().method.label),
                           .form = "scatter"}};
}

}  // namespace

std::vector<std::string> compared_names(Preset preset) {
  using Names = std::vector<std::string>;
  return by_preset<Names>(preset, {"softmax", "bnsh"}, {"softmax", "bn", "sh", "bnsh"},
                          {"softmax", "bn", "bn-nostd", "sh", "bnsh", "linear", "linear_bn",
                           "linear_sh", "linear_bnsh"});
}

ordered_json model_settings(DataKind kind, const ordered_json& changes) {
  const auto config = preset(kind);
  ordered_json settings = to_json(config.model).at("encoder");
  settings["scales"] = default_scales(encoder_of(config.model).heads);
  for (const auto* by_method : {"attention", "use_std", "beta_mode", "count_weighting"})
    settings.erase(by_method);
  settings["optimiser"] = "AdamW";
  settings.update(ordered_json(json(config.training)));
  settings.erase("seed");
  settings.erase("epochs");
  settings.update(changes);
  return settings;
}

RunConfig base_config(const json& settings, const Dataset& dataset) {
  auto config = preset(dataset.kind);
  const auto& own = settings.at(model_name(dataset.kind));
  json model = to_json(config.model), training = config.training;
  take(model, own);
  take(model.at("encoder"), own);
  take(training, own);
  config.model = read_options(model);
  training.get_to(config.training);
  if (config.training.steps == 0)
    settings.at("epochs").at(dataset.name).get_to(config.training.epochs);
  return config;
}

MethodValues TrainedMethods::final_epoch(size_t method) const {
  static_assert(std::string_view(kChosenEpochs[0].key) == "final");
  return {accuracy[method].method, {accuracy[method].values[0]}};
}

TrainedMethods train_methods(Context& context, const Dataset& dataset,
                             const std::vector<ComparedMethod>& methods) {
  const auto base = base_config(context.settings(), dataset);
  TrainedMethods trained{.accuracy = {},
                         .inspected = std::vector<std::vector<json>>(methods.size())};
  for (const auto& compared : methods)
    trained.accuracy.push_back(
        {compared.method.label, std::vector<std::vector<double>>(std::size(kChosenEpochs))});
  // Seeds outside: a comparison that is stopped early holds pairs.
  for (const auto seed : context.seeds()) {
    for (size_t m = 0; m < methods.size(); ++m) {
      const auto found = train(context, dataset, methods[m], base, seed);
      for (size_t e = 0; e < std::size(kChosenEpochs); ++e)
        trained.accuracy[m].values[e].push_back(found.at("accuracy").at(e));
      trained.inspected[m].push_back(found.at("inspected"));
    }
  }
  return trained;
}

ResultTable accuracy_table(Context& context, const Dataset& dataset,
                           const TrainedMethods& trained) {
  const auto sizes = complete_config(base_config(context.settings(), dataset), dataset).data;
  const auto cases = static_cast<double>(sizes.test_size);
  std::vector<std::string> columns = {"method"};
  for (const auto& epoch : kChosenEpochs) columns.emplace_back(epoch.label);
  const double majority = dataset.test.labels.bincount().max().item<double>();
  return {.title = fmt::format("{}: test accuracy [%], by epoch", dataset.name),
          .columns = columns,
          .rows = mean_rows(trained.accuracy, "{:.2f}"),
          .note = fmt::format("Mean ± sample standard deviation over {} seeds. Fitted: {}, held "
                              "out for validation: {}, test: {}; one test sample = {:.2f} %. "
                              "Always the most frequent class: {:.2f} %.",
                              context.seeds().size(), sizes.train_size, sizes.validation_size,
                              sizes.test_size, 100 / cases, 100 * majority / cases),
          .figure = Figure{.axis = "test accuracy [%]", .across = "epoch that is measured"}};
}

ResultTable difference_table(const Dataset& dataset, std::vector<std::vector<Cell>> rows) {
  return {
      .title = fmt::format("{}: difference of test accuracy [points], final epoch", dataset.name),
      .columns = {"difference", "mean [95 % interval]"},
      .rows = std::move(rows),
      .note = fmt::format("Paired by seed, with the 95 % Student-t interval: one that holds 0 "
                          "shows none. One test sample = {:.2f} points.",
                          100.0 / static_cast<double>(dataset.test.size())),
      .figure = {}};
}

std::vector<ResultTable> compare_on(Context& context, const Dataset& dataset) {
  const auto base = base_config(context.settings(), dataset);
  std::vector<ComparedMethod> methods;
  for (const auto& name : context.settings().at("methods"))
    methods.push_back({method_named(name, encoder_of(base.model))});
  const auto trained = train_methods(context, dataset, methods);
  std::vector<MethodValues> final_epoch;
  for (size_t m = 0; m < methods.size(); ++m) final_epoch.push_back(trained.final_epoch(m));
  return {accuracy_table(context, dataset, trained),
          difference_table(dataset, difference_rows(final_epoch, "{:+.2f}")),
          cost_table(dataset, base, methods, trained)};
}

std::vector<ResultTable> compare_methods(Context& context) {
  std::vector<ResultTable> tables;
  for (const auto& name : context.settings().at("data"))
    append(tables, compare_on(context, load_dataset(name)));
  return tables;
}

}  // namespace kktorch::primal_dual
