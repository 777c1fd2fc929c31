#include "train/experiments/reproduction.h"

#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <algorithm>
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

/// What a setting is, in errors.
std::string kind_of(const ordered_json& value) {
  if (value.is_array()) return value.empty() ? "list" : "list of " + kind_of(value.front()) + 's';
  if (value.is_number_integer()) return "integer";
  return value.is_number() ? "number" : value.type_name();
}

bool is_of_kind(const ordered_json& value, const ordered_json& like) {
  if (value.is_array() && like.is_array())
    return !value.empty() && std::all_of(value.begin(), value.end(), [&](const auto& entry) {
      return is_of_kind(entry, like.front());
    });
  return like.is_number_float() ? value.is_number() : kind_of(value) == kind_of(like);
}

/// Replaces a setting, NAME=VALUE, by a value of its kind.
void change_setting(const Experiment& experiment, ordered_json& settings,
                    const std::string& change) {
  const auto sign = change.find('=');
  if (sign == std::string::npos) fail("--set: expected NAME=VALUE, but got {}", change);
  const auto name = change.substr(0, sign), text = change.substr(sign + 1);
  const auto setting = settings.find(name);
  if (setting == settings.end()) fail("--set: expected the name of a setting, but got {}", name);
  if (setting->is_string()) {
    const auto choices = experiment.choices.find(name);
    if (choices == experiment.choices.end())
      fail("--set: expected a setting that can be changed, but {} is always {}", name,
           setting->get<std::string>());
    if (!choices->second.empty() && !std::ranges::count(choices->second, text))
      fail("--set: expected {} to be {}, but got {}", name, fmt::join(choices->second, " or "),
           text);
    *setting = text;
    return;
  }
  const auto value = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded() || !is_of_kind(value, *setting))
    fail("--set: expected {} to be of the kind {}, but got {}", name, kind_of(*setting), text);
  *setting = value;
}

ordered_json settings_of(const Experiment& experiment, const ReproductionOptions& options) {
  auto settings = experiment.settings(options.preset);
  for (const auto& change : options.changes) change_setting(experiment, settings, change);
  return settings;
}

ordered_json config_of(const Experiment& experiment, const ReproductionOptions& options) {
  ordered_json about = {{"paper", experiment.paper}, {"name", experiment.name}};
  if (options.command.empty())
    about["preset"] = kPresetNames[static_cast<int>(options.preset)];
  else
    about["command"] = options.command;
  about["first_seed"] = options.seed;
  return {{"kktorch", build_info().version},
          {"experiment", about},
          {"settings", settings_of(experiment, options)}};
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
  size_t drawn = 0;
  for (const auto& table : result.at("tables")) {
    const auto& figure = table.at("figure");
    const bool only_drawn = figure.is_object() && figure.at("only").get<bool>();
    drawn += only_drawn;
    if (!only_drawn) text += '\n' + table_text(table);
  }
  if (drawn > 0) text += fmt::format("\n{} figures of curves are in the report.\n", drawn);
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
