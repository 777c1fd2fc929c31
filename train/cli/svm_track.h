#pragma once
// kktorch svm track: train the one-layer model on data in a file, with the margin tracker.
#include "train/cli/command.h"

namespace kktorch::cli {

Command add_svm_track(CLI::App& svm);

}  // namespace kktorch::cli
