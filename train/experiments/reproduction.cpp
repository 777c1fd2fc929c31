#include "train/experiments/reproduction.h"

#include <ATen/Parallel.h>

#include <cstdio>

#include "ops/info.h"
#include "train/common/error.h"
#include "train/common/files.h"
#include "train/experiments/context.h"
#include "train/loop/interrupt.h"
#include "train/loop/table.h"
#include "train/runs/run_config.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

ordered_json config_of(const Experiment& experiment, const ReproductionOptions& options) {
  return {{"kktorch", build_info().version},
          {"experiment",
           {{"paper", experiment.paper},
            {"name", experiment.name},
            {"preset", kPresetNames[static_cast<int>(options.preset)]},
            {"first_seed", options.seed}}},
          {"settings", experiment.settings(options.preset)}};
}

void prepare_folder(const ReproductionOptions& options, const ordered_json& config) {
  const auto file = options.folder / "config.json";
  make_folder(options.folder);
  if (fs::exists(file)) {
    if (!options.resume)
      fail(
          "{}: expected a new run folder, but it holds a run; pass --resume to continue it or "
          "--out to name another",
          options.folder.string());
    check_same_config(file, config, {"experiment", "settings"});
  }
  write_file(file, config.dump(2) + '\n');
}

std::string config_text(const ordered_json& config) {
  Table table({"setting", "value"});
  for (const auto* group : {"experiment", "settings"})
    for (const auto& [name, value] : config.at(group).items())
      table.add({name, value.is_string() ? value.get<std::string>() : value.dump()});
  return table.text();
}

ordered_json result_of(const Experiment& experiment, const ordered_json& config, Context context) {
  const auto found = experiment.run(context);
  ordered_json tables = ordered_json::array();
  for (const auto& table : found.tables) tables.push_back(to_json(table));
  auto result = config;
  result["title"] = experiment.title;
  result["claim"] = experiment.claim;
  result["limits"] = experiment.limits;
  result["seeds"] = context.seeds();
  result["threads"] = at::get_num_threads();
  result["seconds"] = context.seconds();
  result["tables"] = std::move(tables);
  result["maps"] = nlohmann::json(found.maps);
  return result;
}

std::string result_text(const ordered_json& result) {
  auto text = fmt::format("{}\n{}\n", result.at("title").get<std::string>(),
                          result.at("claim").get<std::string>());
  for (const auto& table : result.at("tables")) text += '\n' + table_text(table);
  return text + "\nThis does not show: " + result.at("limits").get<std::string>() + '\n';
}

}  // namespace

std::optional<ordered_json> reproduce(const Experiment& experiment,
                                      const ReproductionOptions& options) {
  const auto config = config_of(experiment, options);
  prepare_folder(options, config);
  fmt::print("{}\n", config_text(config));
  std::fflush(stdout);  // whoever watches a file sees what is running
  const auto file = options.folder / "result.json";
  if (!fs::exists(file)) {
    const InterruptGuard interrupt_guard;
    try {
      const auto result = result_of(
          experiment, config,
          Context(config.at("settings"), options.seed, options.folder, options.invariants));
      write_file(options.folder / "table.txt", result_text(result));
      write_file(file, result.dump(2) + '\n');
    } catch (const Interrupted&) {
      fmt::print(stderr, "stopped; the same command with --resume continues it\n");
      return {};
    }
  }
  auto result = ordered_json::parse(read_file(file));
  fmt::print("{}\nrun folder: {}\n", result_text(result), options.folder.string());
  return result;
}

}  // namespace kktorch
