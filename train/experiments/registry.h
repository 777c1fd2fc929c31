#pragma once
// Every experiment of the project, in the order in which they are listed. The program, the report,
// the documentation and the tests read this list and nothing else.
//
// A new experiment is a file in the folder of its paper with a function that returns an Experiment,
// and a line in registry.cpp. The list is explicit: a linker drops the objects of a static library
// that only register themselves.
#include <string>
#include <vector>

#include "train/experiments/experiment.h"

namespace kktorch {

const std::vector<Experiment>& experiments();

/// @throws UserError naming the experiments that there are.
const Experiment& find_experiment(const std::string& paper, const std::string& name);

/// The list as a table: paper, experiment, title, time of each preset.
std::string experiments_text();

}  // namespace kktorch
