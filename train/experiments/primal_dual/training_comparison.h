#pragma once
// Methods trained on data sets with several seeds, as parts of an experiment.
#include <string>
#include <vector>

#include "train/data/dataset.h"
#include "train/experiments/context.h"
#include "train/experiments/experiment.h"
#include "train/runs/run_config.h"

namespace kktorch::primal_dual {

/// Settings of a comparison: the data sets `data`, the `methods` (runs/methods.h; the first one is
/// what the others are compared with), and of the preset of `kind` what decides about a run.
nlohmann::ordered_json comparison_settings(DataKind kind, std::vector<std::string> data,
                                           std::vector<std::string> methods, int64_t seeds);

/// The run of a method with a seed on a data set under these settings.
RunConfig comparison_run(const nlohmann::json& settings, const Dataset& dataset,
                         const std::string& method, uint64_t seed);

/// Trains every method with every seed on every data set, the same budget for all. For each data
/// set the test accuracy at the final epoch and at the epochs that are best on validation and on
/// test data, in columns of their own, and paired differences at the final epoch.
std::vector<ResultTable> compare_methods(Context& context);

}  // namespace kktorch::primal_dual
