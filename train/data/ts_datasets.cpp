#include "train/data/ts_datasets.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <optional>

#include "train/common/error.h"
#include "train/data/site_packages.h"
#include "train/data/ts_file.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTrainEnding = "_TRAIN.ts", kTestEnding = "_TEST.ts";
// Where the packages keep their data sets.
constexpr const char* kPackageFolders[] = {"aeon/datasets/data", "sktime/datasets/data"};

struct FilePair {
  fs::path train, test;
};
using Catalogue = std::map<std::string, FilePair>;

/// The name and the files of the pair that `file` belongs to; the other file may be missing.
std::optional<std::pair<std::string, FilePair>> pair_of(const fs::path& file) {
  const auto file_name = file.filename().string();
  for (const auto ending : {kTrainEnding, kTestEnding}) {
    if (!file_name.ends_with(ending)) continue;
    const auto name = file_name.substr(0, file_name.size() - ending.size());
    const auto sibling = [&](std::string_view end) {
      return fs::path(file).replace_filename(name + std::string(end));
    };
    return std::pair{name, FilePair{sibling(kTrainEnding), sibling(kTestEnding)}};
  }
  return {};
}

/// Adds the pairs in `folder` and, if `deep`, in its subfolders; what is there already wins.
void collect(const fs::path& folder, bool deep, Catalogue& catalogue) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.is_directory(error)) {
      if (deep) collect(entry.path(), false, catalogue);
    } else if (auto found = pair_of(entry.path())) {
      catalogue.insert(std::move(*found));
    }
  }
}

Catalogue known_datasets(const fs::path& data_dir) {
  Catalogue catalogue;
  for (const auto& folder : {data_dir, environment_path("KKTORCH_DATA")})
    if (!folder.empty()) collect(folder, true, catalogue);
  for (const auto& packages : site_packages())
    for (const auto* folder : kPackageFolders) collect(packages / folder, true, catalogue);
  return catalogue;
}

std::vector<std::string> names_of(const Catalogue& catalogue) {
  std::vector<std::string> names;
  for (const auto& [name, files] : catalogue) names.push_back(name);
  return names;
}

std::optional<std::pair<std::string, FilePair>> find_dataset(const std::string& data,
                                                             const fs::path& data_dir) {
  std::error_code error;
  if (fs::is_directory(data, error)) {
    Catalogue here;
    collect(data, false, here);
    if (here.size() != 1)
      fail("{}: expected a folder with one pair <NAME>{} and <NAME>{}, but got {}", data,
           kTrainEnding, kTestEnding,
           here.empty() ? "none" : fmt::format("{}", fmt::join(names_of(here), ", ")));
    return *here.begin();
  }
  if (data.ends_with(".ts")) {
    auto found = pair_of(data);
    if (!found)
      fail("{}: expected a file <NAME>{} with <NAME>{} beside it", data, kTrainEnding, kTestEnding);
    return found;
  }
  const auto known = known_datasets(data_dir);
  const auto found = known.find(data);
  if (found == known.end()) return {};
  return *found;
}

/// Before a large file is read for nothing.
void check_complete(const FilePair& files) {
  std::error_code error;
  for (const auto& file : {files.train, files.test})
    if (!fs::is_regular_file(file, error))
      fail("{}: expected the pair {} and {}, but this file does not exist", file.string(),
           files.train.filename().string(), files.test.filename().string());
}

void check_classification(const TsFile& train, const TsFile& test, const FilePair& files) {
  if (train.class_labels.empty())
    fail("{}: expected a data set with class labels (@classlabel true …), but got none",
         files.train.string());
  if (train.class_labels != test.class_labels)
    fail("{}: expected the class labels of the training file ({}), but got ({})",
         files.test.string(), fmt::join(train.class_labels, " "),
         fmt::join(test.class_labels, " "));
  if (train.x.size(2) != test.x.size(2))
    fail("{}: expected {} channels as in the training file, but got {}", files.test.string(),
         train.x.size(2), test.x.size(2));
}

Examples examples_of(const TsFile& cases) { return {cases.x, cases.padding_mask, cases.labels}; }

}  // namespace

std::vector<std::string> ts_dataset_names(const fs::path& data_dir) {
  return names_of(known_datasets(data_dir));
}

std::optional<Dataset> load_ts_dataset(const std::string& data, const fs::path& data_dir) {
  const auto found = find_dataset(data, data_dir);
  if (!found) return {};
  const auto& [name, files] = *found;
  check_complete(files);
  auto train = read_ts_file(files.train), test = read_ts_file(files.test);
  check_classification(train, test, files);
  const auto longest = std::max(train.x.size(1), test.x.size(1));
  return Dataset{.name = name,
                 .kind = DataKind::kSeries,
                 .class_labels = train.class_labels,
                 .train = examples_of(pad_to(std::move(train), longest)),
                 .test = examples_of(pad_to(std::move(test), longest)),
                 .origin = {{"train_file", fs::absolute(files.train).string()},
                            {"test_file", fs::absolute(files.test).string()}}};
}

Cases read_ts_cases(const fs::path& file) {
  const auto cases = read_ts_file(file);
  return {examples_of(cases), cases.class_labels};
}

}  // namespace kktorch
