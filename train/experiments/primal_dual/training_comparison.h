#pragma once
// Methods trained on data sets with several seeds, as parts of an experiment, and their tables.
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "train/data/dataset.h"
#include "train/experiments/context.h"
#include "train/experiments/experiment.h"
#include "train/runs/methods.h"
#include "train/runs/run.h"

namespace kktorch::primal_dual {

/// Names of the methods (runs/methods.h) that are compared; the first one is what the others are
/// compared with.
std::vector<std::string> compared_names(Preset preset);

/// The model and the training of the preset of `kind` as settings, under the name model_name(kind)
/// in those of an experiment; without what the methods and the settings "epochs" say. `changes`
/// replaces some of them, or an option of the model outside of its encoder.
nlohmann::ordered_json model_settings(
    DataKind kind, const nlohmann::ordered_json& changes = nlohmann::ordered_json::object());

/// The configuration that the methods vary, from the settings model_name(kind) and, by the name of
/// the data set, "epochs".
RunConfig base_config(const nlohmann::json& settings, const Dataset& dataset);

/// A method, and what an experiment does besides training it.
struct ComparedMethod {
  Method method;
  ModelChange change = {};  ///< of the new model
  /// What else is kept of the finished run in `folder`.
  std::function<nlohmann::json(const std::filesystem::path& folder, const Dataset& dataset)>
      inspect = {};
};

struct TrainedMethods {
  std::vector<MethodValues> accuracy;                  ///< on test data in %, by kChosenEpochs
  std::vector<std::vector<nlohmann::json>> inspected;  ///< [method][seed], null without `inspect`

  /// The accuracies of a method at the final epoch alone.
  MethodValues final_epoch(size_t method) const;
};

/// Trains every method with every seed, the same budget for all.
TrainedMethods train_methods(Context& context, const Dataset& dataset,
                             const std::vector<ComparedMethod>& methods);

/// The accuracies by epoch; the note says how much one sample weighs and what the majority gives.
ResultTable accuracy_table(Context& context, const Dataset& dataset, const TrainedMethods& trained);

/// `rows` (difference_rows) of accuracies at the final epoch.
ResultTable difference_table(const Dataset& dataset, std::vector<std::vector<Cell>> rows);

/// The settings "methods" (compared_names) on a data set: accuracies, differences, and accuracy
/// against cost.
std::vector<ResultTable> compare_on(Context& context, const Dataset& dataset);

/// compare_on for every data set that the settings "data" name.
std::vector<ResultTable> compare_methods(Context& context);

}  // namespace kktorch::primal_dual
