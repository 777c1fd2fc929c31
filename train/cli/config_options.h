#pragma once
// The options of `kktorch train` that change the preset of a kind of data.
#include <CLI/CLI.hpp>
#include <functional>
#include <vector>

#include "train/runs/run_config.h"

namespace kktorch::cli {

/// What was given on the command line, in its order. The preset is known only once the data are.
using ConfigChanges = std::vector<std::function<void(RunConfig&)>>;

/// Adds the options of training and model; parsing appends to `changes`, which must outlive `app`.
void add_config_options(CLI::App& app, ConfigChanges& changes);

}  // namespace kktorch::cli
