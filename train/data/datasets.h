#pragma once
// Data sets by name, and files of cases to classify.
#include <filesystem>
#include <optional>
#include <string>

#include "train/data/dataset.h"

namespace kktorch {

/// What a user may say besides the name.
struct DatasetOptions {
  std::filesystem::path
      data_dir{};  ///< searched first for the names of .ts data sets; may be empty
  std::optional<int64_t> train_size{}, test_size{};  ///< of generated data; test: validation too
};

/// Loads the data set `data`:
///   - "ListOps", "ListOps-small": generated (listops.h);
///   - "digits": images from the scikit-learn package of the virtual environment (digits.h);
///   - the name, file or folder of a pair of .ts files (ts_datasets.h).
/// @throws UserError for an unknown name (with the known ones) and for whatever is wrong in a file.
Dataset load_dataset(const std::string& data, const DatasetOptions& options = {});

/// Reads cases of the given kind: a .ts file, a CSV file of images (read_digits), or a text file of
/// ListOps expressions (read_listops). @throws UserError
Cases read_cases(const std::filesystem::path& file, DataKind kind);

}  // namespace kktorch
