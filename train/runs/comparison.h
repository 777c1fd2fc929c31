#pragma once
// One model with different methods, trained with several seeds: the job of `kktorch train`.
// Its folder: config.json, <method>-seed<k> per run (run.h), in the end summary.json, table.txt.
#include <filesystem>
#include <string>
#include <vector>

#include "train/runs/methods.h"
#include "train/runs/run_config.h"

namespace kktorch {

enum class ExistingRun { kRefuse, kResume, kOverwrite };

struct ComparisonOptions {
  std::vector<Method> methods;  ///< the first one is what the others are compared with
  int64_t seeds = 3;            ///< runs with seeds 1 … seeds
  RunConfig
      base;  ///< the method and the seed are set per run; its encoder is what the methods vary
  std::filesystem::path folder;
  ExistingRun existing = ExistingRun::kRefuse;
};

/// Trains every (method, seed), writes the summary and prints the table.
/// @return false if a signal stopped it; the same call with kResume continues.
/// @throws UserError, DivergedError, see train_run.
bool train_comparison(const ComparisonOptions& options, const Dataset& dataset);

}  // namespace kktorch
