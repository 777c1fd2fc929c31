#include "train/data/datasets.h"

#include <fmt/ranges.h>

#include "train/common/error.h"
#include "train/data/digits.h"
#include "train/data/listops.h"
#include "train/data/ts_datasets.h"

namespace kktorch {
namespace {

[[noreturn]] void fail_unknown(const std::string& data, const DatasetOptions& options) {
  auto names = ts_dataset_names(options.data_dir);
  names.insert(names.end(), {"ListOps", "ListOps-small", "digits"});
  fail("data set: expected one of {} (more with --data-dir), but got '{}'", fmt::join(names, ", "),
       data);
}

}  // namespace

Dataset load_dataset(const std::string& data, const DatasetOptions& options) {
  if (auto listops = listops_preset(data)) {
    listops->train_size = options.train_size.value_or(listops->train_size);
    listops->validation_size = options.test_size.value_or(listops->validation_size);
    listops->test_size = options.test_size.value_or(listops->test_size);
    return generate_listops(data, *listops);
  }
  if (options.train_size || options.test_size)
    fail("{}: expected the sizes of the data set as they are, but got --train-size or --test-size",
         data);
  if (data == "digits") return load_digits();
  if (auto series = load_ts_dataset(data, options.data_dir)) return *std::move(series);
  fail_unknown(data, options);
}

Cases read_cases(const std::filesystem::path& file, DataKind kind) {
  switch (kind) {
    case DataKind::kImages:
      return read_digits(file);
    case DataKind::kTokens:
      return read_listops(file);
    default:
      return read_ts_cases(file);
  }
}

}  // namespace kktorch
