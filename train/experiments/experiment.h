#pragma once
// An experiment of a paper: what it claims, what it needs, and how it is run.
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "train/experiments/map_grid.h"
#include "train/experiments/result.h"

namespace kktorch {

class Context;

/// How much is run: smoke shows in seconds that everything works, quick gives a first answer in
/// minutes, full is the experiment.
enum class Preset { kSmoke, kQuick, kFull };

constexpr const char* kPresetNames[] = {"smoke", "quick", "full"};

/// One of three values, by preset.
template <typename T>
T by_preset(Preset preset, T smoke, T quick, T full) {
  return preset == Preset::kSmoke ? smoke : preset == Preset::kQuick ? quick : full;
}

/// What an experiment found: tables, most often nothing else.
struct Findings {
  Findings(std::vector<ResultTable> tables, std::vector<MapGrid> maps = {})
      : tables(std::move(tables)), maps(std::move(maps)) {}

  std::vector<ResultTable> tables;
  std::vector<MapGrid> maps;
};

struct Experiment {
  std::string paper, name, title;
  std::string claim;               ///< one sentence: what the paper says, and what is checked
  std::string limits;              ///< what the result does not show
  std::vector<std::string> times;  ///< of the presets, on two cores

  /// Everything that the result depends on besides the first seed: a flat object of numbers, lists
  /// and texts, with the number of "seeds" among them. Printed, stored, and handed to `run`.
  std::function<nlohmann::ordered_json(Preset)> settings;

  /// The values that a text among the settings can have, none: any. A text that is not among them
  /// is fixed.
  std::map<std::string, std::vector<std::string>> choices = {};

  /// @throws DivergedError if a value is not finite.
  std::function<Findings(Context&)> run;
};

}  // namespace kktorch
