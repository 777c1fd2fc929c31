#pragma once
// Data sets by name: a pair of `.ts` files in a user directory or in the installed aeon package.
#include <filesystem>
#include <string>

#include "train/data/ts_file.h"

namespace kktorch {

/// A data set for classification: both files padded to the longest series of the two.
struct Dataset {
  std::string name;
  std::filesystem::path train_file, test_file;  ///< absolute
  TsFile train, test;
};

/// Loads the data set `data`:
///   - a file <NAME>_TRAIN.ts with <NAME>_TEST.ts beside it, or a folder that holds one such pair;
///   - a name, looked for in `data_dir`, in $KKTORCH_DATA, and in the aeon package of the virtual
///   environment
///     ($KKTORCH_VENV, $VIRTUAL_ENV or .venv of the source tree), there as <NAME>_TRAIN.ts or
///     <FOLDER>/<NAME>_TRAIN.ts.
/// @param data_dir  may be empty.
/// @throws UserError for an unknown name (with the known ones), a malformed file, files that do not
/// fit each other, or
///     a data set without class labels.
Dataset load_dataset(const std::string& data, const std::filesystem::path& data_dir = {});

}  // namespace kktorch
