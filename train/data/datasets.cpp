#include "train/data/datasets.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <optional>
#include <vector>

#include "train/common/error.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTrainEnding = "_TRAIN.ts", kTestEnding = "_TEST.ts";

struct FilePair {
  fs::path train, test;
};
using Catalogue = std::map<std::string, FilePair>;

/// The pair of `train` = <NAME>_TRAIN.ts, if <NAME>_TEST.ts exists too.
std::optional<std::pair<std::string, FilePair>> pair_of(const fs::path& train) {
  const auto file_name = train.filename().string();
  if (!file_name.ends_with(kTrainEnding)) return {};
  const auto name = file_name.substr(0, file_name.size() - kTrainEnding.size());
  const auto test = train.parent_path() / (name + std::string(kTestEnding));
  std::error_code error;
  if (!fs::is_regular_file(train, error) || !fs::is_regular_file(test, error)) return {};
  return std::pair{name, FilePair{train, test}};
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

fs::path environment_path(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

/// The data folders of every aeon package in the virtual environment.
std::vector<fs::path> aeon_folders() {
  std::vector<fs::path> folders;
  for (const auto& venv : {environment_path("KKTORCH_VENV"), environment_path("VIRTUAL_ENV"),
                           fs::path(KKTORCH_SOURCE_VENV)}) {
    std::error_code error;
    if (venv.empty()) continue;
    for (const auto& entry : fs::directory_iterator(venv / "lib", error))
      if (entry.path().filename().string().starts_with("python3"))
        folders.push_back(entry.path() / "site-packages/aeon/datasets/data");
  }
  return folders;
}

Catalogue known_datasets(const fs::path& data_dir) {
  Catalogue catalogue;
  for (const auto& folder : {data_dir, environment_path("KKTORCH_DATA")})
    if (!folder.empty()) collect(folder, true, catalogue);
  for (const auto& folder : aeon_folders()) collect(folder, true, catalogue);
  return catalogue;
}

std::string names_of(const Catalogue& catalogue) {
  std::vector<std::string> names;
  for (const auto& [name, files] : catalogue) names.push_back(name);
  return names.empty() ? "none (install aeon, or pass --data-dir)"
                       : fmt::format("{}", fmt::join(names, ", "));
}

std::pair<std::string, FilePair> find_dataset(const std::string& data, const fs::path& data_dir) {
  std::error_code error;
  if (fs::is_directory(data, error)) {
    Catalogue here;
    collect(data, false, here);
    if (here.size() != 1)
      fail("{}: expected a folder with one pair <NAME>{} and <NAME>{}, but got {}", data,
           kTrainEnding, kTestEnding, here.empty() ? "none" : names_of(here));
    return *here.begin();
  }
  if (data.ends_with(".ts")) {
    auto found = pair_of(data);
    if (!found)
      fail("{}: expected a file <NAME>{} with <NAME>{} beside it, but got no such pair", data,
           kTrainEnding, kTestEnding);
    return *found;
  }
  const auto known = known_datasets(data_dir);
  const auto found = known.find(data);
  if (found == known.end())
    fail("data set: expected one of {}, but got '{}'", names_of(known), data);
  return *found;
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

}  // namespace

Dataset load_dataset(const std::string& data, const fs::path& data_dir) {
  const auto [name, files] = find_dataset(data, data_dir);
  auto train = read_ts_file(files.train), test = read_ts_file(files.test);
  check_classification(train, test, files);
  const auto longest = std::max(train.x.size(1), test.x.size(1));
  return {name, fs::absolute(files.train), fs::absolute(files.test),
          pad_to(std::move(train), longest), pad_to(std::move(test), longest)};
}

}  // namespace kktorch
