#include "train/runs/run_config.h"

#include "ops/info.h"
#include "train/common/error.h"
#include "train/common/files.h"

namespace kktorch {
namespace {

std::string value_at(const nlohmann::json& config, const nlohmann::json::json_pointer& place) {
  return config.contains(place) ? config.at(place).dump() : "nothing";
}

/// Sizes of the examples that are fitted and held out for validation.
std::pair<int64_t, int64_t> split_sizes(const TrainingConfig& training, const Dataset& dataset) {
  const auto all = dataset.train.size();
  if (dataset.validation.size() > 0) return {all, dataset.validation.size()};
  const auto split = stratified_split(dataset.train.labels, training.validation, training.seed);
  if (split.rest.size(0) == 0)
    fail("train: expected a validation fraction that leaves cases to fit, but got {} of {} cases",
         training.validation, all);
  return {split.rest.size(0), split.held_out.size(0)};
}

/// Epochs that `steps` updates take, the last one perhaps not whole.
int64_t epochs_of(int64_t steps, int64_t examples, int64_t batch_size) {
  const auto batches = (examples + batch_size - 1) / batch_size;
  return (steps + batches - 1) / batches;
}

}  // namespace

RunConfig preset(DataKind kind) {
  RunConfig config;
  config.model = default_options(kind);
  auto& encoder = encoder_of(config.model);
  auto& training = config.training;
  if (kind == DataKind::kImages) {
    encoder.width = 64, encoder.heads = 4, encoder.ffn = 128, encoder.layers = 4;
    training.batch_size = 64, training.weight_decay = 0.05;
  } else if (kind == DataKind::kTokens) {
    encoder.width = 64, encoder.heads = 2, encoder.ffn = 128, encoder.layers = 2;
    training.steps = 5000, training.learning_rate = 1e-4, training.weight_decay = 0;
    training.warmup = 0.2, training.decay = "linear";
  }
  return config;
}

RunConfig complete_config(RunConfig config, const Dataset& dataset) {
  fit_shape(config.model, dataset);
  if (dataset.validation.size() > 0) config.training.validation = 0;
  const auto [fit, validation] = split_sizes(config.training, dataset);
  auto& training = config.training;
  if (training.steps > 0) training.epochs = epochs_of(training.steps, fit, training.batch_size);
  const auto& inputs = dataset.train.inputs;
  config.data = {.name = dataset.name,
                 .origin = dataset.origin,
                 .train_size = fit,
                 .validation_size = validation,
                 .test_size = dataset.test.size(),
                 .class_labels = dataset.class_labels};
  if (dataset.kind == DataKind::kSeries) config.data.channels = inputs.size(2);
  if (dataset.kind == DataKind::kImages) config.data.channels = inputs.size(1);
  if (dataset.kind != DataKind::kImages) config.data.max_length = inputs.size(1);
  return config;
}

nlohmann::json to_json(const RunConfig& config) {
  return {{"kktorch", build_info().version},
          {"method", config.method},
          {"model", to_json(config.model)},
          {"data", config.data},
          {"training", config.training}};
}

RunConfig read_run_config(const std::filesystem::path& file) {
  const auto json = read_json(file);
  try {
    return {json.at("method"), read_options(json.at("model")), json.at("data"),
            json.at("training")};
  } catch (const nlohmann::json::exception& error) {
    fail("{}: expected the configuration of a run, but got: {}", file.string(), error.what());
  } catch (const UserError& error) {
    fail("{}: {}", file.string(), error.what());
  }
}

nlohmann::json read_json(const std::filesystem::path& file) {
  auto json = nlohmann::json::parse(read_file(file), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) fail("{}: expected JSON, but got something else", file.string());
  return json;
}

void check_same_config(const std::filesystem::path& file, const nlohmann::json& wanted,
                       const std::vector<std::string>& parts) {
  const auto saved = read_json(file);
  for (const auto& part : parts) {
    const auto before =
        saved.is_object() ? saved.value(part, nlohmann::json::object()) : nlohmann::json::object();
    for (const auto& change : nlohmann::json::diff(before, wanted.at(part))) {
      const nlohmann::json::json_pointer place(change.at("path").get<std::string>());
      fail(
          "{}: expected the configuration of this run to resume it, but {}{} is {} there and {} "
          "here",
          file.string(), part, place.to_string(), value_at(before, place),
          value_at(wanted.at(part), place));
    }
  }
}

}  // namespace kktorch
