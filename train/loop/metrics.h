#pragma once
// One row per epoch, in two files: metrics.jsonl (one JSON object a line) and metrics.csv (a
// header, then values).
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace kktorch {

constexpr const char* kJsonLines = "metrics.jsonl";

class MetricsSink {
 public:
  explicit MetricsSink(std::filesystem::path folder) : folder_(std::move(folder)) {}

  /// @param row  a flat object of numbers, always the same keys. NaN: null, in the CSV nothing.
  void append(const nlohmann::ordered_json& row);

  /// Drops the first row whose `counter` exceeds `last` and those behind it, and a last line that
  /// is only half written.
  void keep_until(int64_t last, const std::string& counter = "epoch");

 private:
  std::filesystem::path jsonl() const { return folder_ / kJsonLines; }
  std::filesystem::path csv() const { return folder_ / "metrics.csv"; }

  std::filesystem::path folder_;
};

/// The rows of a folder's metrics.jsonl. @throws UserError, naming the file.
std::vector<nlohmann::json> read_metrics(const std::filesystem::path& folder);

}  // namespace kktorch
