#pragma once
// Data sets of time series: pairs of `.ts` files in a user directory or in an installed package.
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "train/data/dataset.h"

namespace kktorch {

/// Names of the data sets in `data_dir`, in $KKTORCH_DATA, and in the packages aeon and sktime of
/// the virtual environment, there as <NAME>_TRAIN.ts or <FOLDER>/<NAME>_TRAIN.ts.
/// @param data_dir  may be empty.
std::vector<std::string> ts_dataset_names(const std::filesystem::path& data_dir);

/// Loads the data set `data`: one of these names, a file <NAME>_TRAIN.ts with <NAME>_TEST.ts beside
/// it, or a folder that holds one such pair. Both files are padded to the longest series of the
/// two.
/// @return nothing for an unknown name.
/// @throws UserError for a file without its partner, a malformed file, files that do not fit each
/// other, or a data set without class labels.
std::optional<Dataset> load_ts_dataset(const std::string& data,
                                       const std::filesystem::path& data_dir);

/// The cases of one file.
Cases read_ts_cases(const std::filesystem::path& file);

}  // namespace kktorch
