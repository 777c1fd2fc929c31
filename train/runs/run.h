#pragma once
// One training run of a TimeSeriesClassifier and its folder:
//   config.json  metrics.jsonl  metrics.csv  checkpoint.pt  and, once finished, model.ts
//   (TorchScript)  summary.json
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "train/runs/run_config.h"

namespace kktorch {

/// The configuration of a run on `dataset`: sizes, labels and shapes filled in.
RunConfig complete_config(RunConfig config, const Dataset& dataset);

/// Trains the model of `config` in `folder` and continues where an earlier call stopped; a finished
/// run is read back.
/// @param label  what the progress line calls the run.
/// @return summary.json, or nothing if a signal stopped the run.
/// @throws UserError if the folder holds a run of another configuration; DivergedError, with the
/// last good checkpoint
///     left in the folder.
std::optional<nlohmann::json> train_run(const std::filesystem::path& folder,
                                        const RunConfig& config, const Dataset& dataset,
                                        const std::string& label);

/// The trained model of a run folder.
struct TrainedModel {
  RunConfig config;
  TimeSeriesClassifier model{nullptr};
};

/// @throws UserError if `folder` is no run folder, or its checkpoint does not fit its config.json.
TrainedModel load_run(const std::filesystem::path& folder);

/// Saves the model as TorchScript, readable in C++ and Python once libkktorch.so is loaded.
void save_torchscript(const TimeSeriesClassifier& model, const std::filesystem::path& file);

/// The forward function of a classifier, for Trainer and evaluate_logits.
Trainer::Forward forward_of(TimeSeriesClassifier model);

}  // namespace kktorch
