#include "train/loop/metrics.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <sstream>
#include <vector>

#include "train/common/error.h"
#include "train/common/files.h"

namespace kktorch {
namespace {

using Row = nlohmann::ordered_json;

std::string csv_header(const Row& row) {
  std::vector<std::string> names;
  for (const auto& [name, value] : row.items()) names.push_back(name);
  return fmt::format("{}", fmt::join(names, ","));
}

std::string csv_values(const Row& row) {
  std::vector<std::string> values;
  for (const auto& value : row) {
    const auto text = value.dump();
    values.push_back(text == "null" ? "" : text);
  }
  return fmt::format("{}", fmt::join(values, ","));
}

}  // namespace

void MetricsSink::append(const Row& row) {
  if (!std::filesystem::exists(csv())) append_line(csv(), csv_header(row));
  append_line(csv(), csv_values(row));
  append_line(jsonl(), row.dump());
}

void MetricsSink::keep_until(int64_t last, const std::string& counter) {
  if (!std::filesystem::exists(jsonl())) {
    std::filesystem::remove(csv());
    return;
  }
  std::string json_text, csv_text;
  std::istringstream lines(read_file(jsonl()));
  for (std::string line; std::getline(lines, line);) {
    const auto row = Row::parse(line, nullptr, /*allow_exceptions=*/false);
    if (row.is_discarded() || row.at(counter).get<int64_t>() > last) break;
    if (csv_text.empty()) csv_text = csv_header(row) + '\n';
    csv_text += csv_values(row) + '\n';
    json_text += row.dump() + '\n';
  }
  write_file(jsonl(), json_text);
  if (csv_text.empty())
    std::filesystem::remove(csv());
  else
    write_file(csv(), csv_text);
}

std::vector<nlohmann::json> read_metrics(const std::filesystem::path& folder) {
  const auto file = folder / kJsonLines;
  std::vector<nlohmann::json> rows;
  std::istringstream lines(read_file(file));
  for (std::string line; std::getline(lines, line);) {
    rows.push_back(nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false));
    if (!rows.back().is_object())
      fail("{}: expected a JSON object in line {}", file.string(), rows.size());
  }
  return rows;
}

}  // namespace kktorch
