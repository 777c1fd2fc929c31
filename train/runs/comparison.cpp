#include "train/runs/comparison.h"

#include <algorithm>
#include <cstdio>

#include "train/common/error.h"
#include "train/common/files.h"
#include "train/loop/interrupt.h"
#include "train/runs/comparison_report.h"
#include "train/runs/run.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string run_name(const std::string& method, int64_t seed) {
  return fmt::format("{}-seed{}", method, seed);
}

RunConfig config_of(const ComparisonOptions& options, const Method& method, int64_t seed,
                    const Dataset& dataset) {
  auto config = options.base;
  config.method = method.label;
  encoder_of(config.model) = method.encoder;
  config.training.seed = static_cast<uint64_t>(seed);
  return complete_config(config, dataset);
}

std::vector<std::string> labels_of(const std::vector<Method>& methods) {
  std::vector<std::string> labels;
  for (const auto& method : methods) labels.push_back(method.label);
  return labels;
}

/// What all runs of the folder share, and which ones there are.
json comparison_config(const ComparisonOptions& options, const Dataset& dataset) {
  auto config = to_json(complete_config(options.base, dataset));
  config.erase("method");
  config.at("model").at("encoder").erase("attention");
  config.at("training").erase("seed");
  config["methods"] = labels_of(options.methods);
  config["seeds"] = options.seeds;
  return config;
}

/// Removes what a comparison writes into its folder and nothing else.
void remove_comparison(const fs::path& folder) {
  std::vector<fs::path> ours;
  for (const auto* name : {"config.json", "summary.json", "table.txt"})
    ours.push_back(folder / name);
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_directory() &&
        entry.path().filename().string().find("-seed") != std::string::npos &&
        fs::exists(entry.path() / "config.json"))
      ours.push_back(entry.path());
  for (const auto& path : ours) {
    std::error_code error;
    fs::remove_all(path, error);
    if (error) fail("{}: expected to remove this, but got: {}", path.string(), error.message());
  }
}

/// Before anything is written: options that do not fit together leave no folder behind.
void check_options(const ComparisonOptions& options, const Dataset& dataset) {
  const auto labels = labels_of(options.methods);
  for (const auto& method : options.methods) {
    if (std::count(labels.begin(), labels.end(), method.label) > 1)
      fail("train: expected distinct methods, but got {} twice", method.label);
    make_classifier(config_of(options, method, 1, dataset).model);
  }
}

void prepare_folder(const ComparisonOptions& options, const json& config) {
  const auto file = options.folder / "config.json";
  make_folder(options.folder);
  if (fs::exists(file)) {
    if (options.existing == ExistingRun::kRefuse)
      fail(
          "{}: expected a new run folder, but it holds a run; pass --resume to continue it or "
          "--overwrite to replace it",
          options.folder.string());
    if (options.existing == ExistingRun::kOverwrite) remove_comparison(options.folder);
  }
  // More seeds or methods may join the ones that are there.
  if (fs::exists(file)) check_same_config(file, config);
  write_file(file, config.dump(2) + '\n');
}

}  // namespace

bool train_comparison(const ComparisonOptions& options, const Dataset& dataset) {
  check_options(options, dataset);
  prepare_folder(options, comparison_config(options, dataset));
  const InterruptGuard interrupt_guard;
  RunSummaries runs;
  // Seeds outside: a comparison that is stopped early holds pairs.
  for (int64_t seed = 1; seed <= options.seeds; ++seed) {
    for (const auto& method : options.methods) {
      const auto name = run_name(method.label, seed);
      auto summary =
          train_run(options.folder / name, config_of(options, method, seed, dataset), dataset,
                    fmt::format("{} seed {}/{}", method.label, seed, options.seeds));
      if (!summary) {
        fmt::print(stderr, "stopped in run {}; the same command with --resume continues it\n",
                   name);
        return false;
      }
      runs[method.label].push_back(std::move(*summary));
    }
  }
  const auto summary = summarise(labels_of(options.methods), runs, dataset.name);
  const auto table = table_text(summary, runs);
  write_file(options.folder / "summary.json", summary.dump(2) + '\n');
  write_file(options.folder / "table.txt", table);
  fmt::print("{}\nrun folder: {}\n", table, options.folder.string());
  return true;
}

}  // namespace kktorch
