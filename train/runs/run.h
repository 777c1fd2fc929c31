#pragma once
// One training run of a classifier and its folder:
//   config.json  metrics.jsonl  metrics.csv  checkpoint.pt  and, once finished, model.ts
//   (TorchScript)  summary.json
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "train/runs/run_config.h"

namespace kktorch {

/// The epochs whose accuracies a comparison prints, each in a column of its own: `key` in
/// summary.json, and a label that says so where test data chose the epoch.
struct ChosenEpoch {
  const char *key, *label;
};
inline constexpr ChosenEpoch kChosenEpochs[] = {{"final", "final epoch"},
                                                {"best_validation", "best on validation"},
                                                {"best_test", "best on test (optimistic)"}};

/// What an experiment does to a new model before it is trained, e.g. replace a layer.
using ModelChange = std::function<void(torch::nn::Module&)>;

/// Trains the model of `config` in `folder` and continues where an earlier call stopped; a finished
/// run is read back.
/// @param label  what the progress line calls the run.
/// @param change  leaves a model that is no longer that of `config`: it is not exported (no
///     model.ts), and load_run reads it only if its parameters are those of `config`.
/// @return summary.json, or nothing if a signal stopped the run.
/// @throws UserError if the folder holds a run of another configuration; DivergedError, with the
/// last good checkpoint
///     left in the folder.
std::optional<nlohmann::json> train_run(const std::filesystem::path& folder,
                                        const RunConfig& config, const Dataset& dataset,
                                        const std::string& label, const ModelChange& change = {});

/// The model that train_run starts from: initial weights by the seed, inputs standardised by the
/// examples that are fitted.
Classifier initial_model(const RunConfig& config, const Dataset& dataset);

/// The trained model of a run folder.
struct TrainedModel {
  RunConfig config;
  Classifier model;
};

/// @throws UserError if `folder` is no run folder, or its checkpoint does not fit its config.json.
TrainedModel load_run(const std::filesystem::path& folder);

}  // namespace kktorch
