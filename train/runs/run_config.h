#pragma once
// What defines a training run, and its form in the file config.json of a run folder.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/time_series_classifier.h"
#include "train/data/datasets.h"
#include "train/loop/trainer.h"

namespace kktorch {

/// The data set of a run. train_size cases are fitted, validation_size cases of the training file
/// are held out.
struct DataConfig {
  std::string name, train_file, test_file;
  int64_t train_size = 0, validation_size = 0, test_size = 0;
  std::vector<std::string> class_labels;
  int64_t channels = 0, max_length = 0;
};

struct TrainingConfig {
  int64_t epochs = 100, batch_size = 32;
  double learning_rate = 1e-3, weight_decay = 5e-4, clip = 4;
  double warmup = 0.1;      ///< fraction of the steps
  double validation = 0.2;  ///< fraction of each class of the training file that is held out
  uint64_t seed = 1;
};

struct RunConfig {
  TimeSeriesClassifierOptions model;
  DataConfig data;
  TrainingConfig training;
};

/// {"kktorch": version, "model": {"type", options…, "encoder": {…}}, "data": {…}, "training": {…}}
nlohmann::json to_json(const RunConfig& config);

/// @throws UserError if `file` does not hold what to_json writes.
RunConfig read_run_config(const std::filesystem::path& file);

/// Parses a JSON file. @throws UserError if it is none.
nlohmann::json read_json(const std::filesystem::path& file);

/// Compares the parts "data", "model" and "training".
/// @throws UserError naming the first difference between the configuration in `file` and `wanted`.
void check_same_config(const std::filesystem::path& file, const nlohmann::json& wanted);

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(DataConfig, name, train_file, test_file, train_size,
                                   validation_size, test_size, class_labels, channels, max_length)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TrainingConfig, epochs, batch_size, learning_rate, weight_decay,
                                   clip, warmup, validation, seed)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(EncoderOptions, width, heads, ffn, layers, dropout,
                                   attention_dropout, norm, norm_first, activation, attention,
                                   beta_mode, beta_init, use_std, eps, scales, tail,
                                   count_weighting, conv)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TimeSeriesClassifierOptions, channels, classes, max_length,
                                   encoder, ragged_masks)

}  // namespace kktorch
