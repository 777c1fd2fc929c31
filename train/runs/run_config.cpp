#include "train/runs/run_config.h"

#include "ops/info.h"
#include "train/common/error.h"
#include "train/common/files.h"

namespace kktorch {
namespace {

constexpr auto kModelType = "TimeSeriesClassifier";

std::string value_at(const nlohmann::json& config, const nlohmann::json::json_pointer& place) {
  return config.contains(place) ? config.at(place).dump() : "nothing";
}

}  // namespace

nlohmann::json to_json(const RunConfig& config) {
  nlohmann::json model = config.model;
  model["type"] = kModelType;
  return {{"kktorch", build_info().version},
          {"model", model},
          {"data", config.data},
          {"training", config.training}};
}

RunConfig read_run_config(const std::filesystem::path& file) {
  const auto json = read_json(file);
  try {
    const auto type = json.at("model").at("type").get<std::string>();
    if (type != kModelType)
      fail("{}: expected a model of type {}, but got {}", file.string(), kModelType, type);
    return {json.at("model"), json.at("data"), json.at("training")};
  } catch (const nlohmann::json::exception& error) {
    fail("{}: expected the configuration of a run, but got: {}", file.string(), error.what());
  }
}

nlohmann::json read_json(const std::filesystem::path& file) {
  auto json = nlohmann::json::parse(read_file(file), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) fail("{}: expected JSON, but got something else", file.string());
  return json;
}

void check_same_config(const std::filesystem::path& file, const nlohmann::json& wanted,
                       const std::vector<std::string>& parts) {
  const auto saved = read_json(file);
  for (const auto& part : parts) {
    const auto before =
        saved.is_object() ? saved.value(part, nlohmann::json::object()) : nlohmann::json::object();
    for (const auto& change : nlohmann::json::diff(before, wanted.at(part))) {
      const nlohmann::json::json_pointer place(change.at("path").get<std::string>());
      fail(
          "{}: expected the configuration of this run to resume it, but {}{} is {} there and {} "
          "here",
          file.string(), part, place.to_string(), value_at(before, place),
          value_at(wanted.at(part), place));
    }
  }
}

}  // namespace kktorch
