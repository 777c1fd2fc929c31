#pragma once
// What defines a training run, and its form in the file config.json of a run folder.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/data/dataset.h"
#include "train/loop/trainer.h"
#include "train/runs/model.h"

namespace kktorch {

/// The data set of a run. train_size examples are fitted; the validation examples are the data
/// set's own, or held out of its training examples.
struct DataConfig {
  std::string name;
  nlohmann::json origin;  ///< Dataset::origin
  int64_t train_size = 0, validation_size = 0, test_size = 0;
  std::vector<std::string> class_labels;
  int64_t channels = 0, max_length = 0;  ///< 0 where the examples have none
};

struct TrainingConfig {
  int64_t epochs = 100;
  int64_t steps = 0;  ///< if positive, the number of updates, and `epochs` follows from it
  int64_t batch_size = 32;
  double learning_rate = 1e-3, weight_decay = 5e-4, clip = 4;
  double warmup = 0.1;           ///< fraction of the steps
  std::string decay = "cosine";  ///< OptimiserOptions::decay
  double validation = 0.2;  ///< fraction of each class that is held out of the training examples; 0
                            ///< for data that have validation examples of their own
  uint64_t seed = 1;
};

struct RunConfig {
  std::string method;  ///< Method::label
  ClassifierOptions model;
  DataConfig data;
  TrainingConfig training;
};

/// The model and the training of `kktorch train` for a kind of data.
///   series: the shape and the settings of the public mvts_transformer, 100 epochs;
///   images: 4 layers of 4 heads, pre-norm, AdamW with weight decay 0.05, 100 epochs;
///   tokens: 2 layers of 2 heads, Adam, 5000 steps, the first fifth of them warm-up, linear decay.
RunConfig preset(DataKind kind);

/// The configuration of a run on `dataset`: sizes, labels and shapes filled in.
/// @throws UserError if the model is for another kind of data, or no example is left to fit.
RunConfig complete_config(RunConfig config, const Dataset& dataset);

/// {"kktorch": version, "method": label, "model": {"type", options…, "encoder": {…}}, "data": {…},
/// "training": {…}}
nlohmann::json to_json(const RunConfig& config);

/// @throws UserError if `file` does not hold what to_json writes.
RunConfig read_run_config(const std::filesystem::path& file);

/// Parses a JSON file. @throws UserError if it is none.
nlohmann::json read_json(const std::filesystem::path& file);

/// Compares the `parts` of two configurations.
/// @throws UserError naming the first difference between the configuration in `file` and `wanted`.
void check_same_config(const std::filesystem::path& file, const nlohmann::json& wanted,
                       const std::vector<std::string>& parts = {"data", "model", "training"});

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(DataConfig, name, origin, train_size, validation_size, test_size,
                                   class_labels, channels, max_length)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TrainingConfig, epochs, steps, batch_size, learning_rate,
                                   weight_decay, clip, warmup, decay, validation, seed)

}  // namespace kktorch
