#pragma once
// One run of an experiment: the job of `kktorch reproduce`. Its folder:
//   config.json  a folder per part (context.h)  and, once finished, result.json  table.txt
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "train/dynamics/invariants.h"
#include "train/experiments/experiment.h"

namespace kktorch {

struct ReproductionOptions {
  Preset preset = Preset::kQuick;
  uint64_t seed = 1;  ///< the first one
  std::filesystem::path folder;
  std::vector<std::string> changes = {};  ///< of settings of the preset: "NAME=VALUE"
  dynamics::InvariantMode invariants = dynamics::InvariantMode::kWarn;
  bool resume = false;       ///< continue, or read back, what the folder holds
  std::string command = {};  ///< that runs it, if it is not one of `kktorch reproduce`
};

/// Prints the configuration, runs the experiment or what is missing of it, writes the result and
/// prints its tables.
/// @return result.json, or nothing if a signal stopped it; the same call with `resume` continues.
/// @throws UserError if the folder holds a run and `resume` is not set, or one of another
/// configuration; DivergedError, with the finished parts left in the folder.
std::optional<nlohmann::ordered_json> reproduce(const Experiment& experiment,
                                                const ReproductionOptions& options);

}  // namespace kktorch
