#pragma once
// What a comparison of methods found: summary.json and the printed table.
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace kktorch {

/// method → summary.json of each seed, the same seeds for every method.
using RunSummaries = std::map<std::string, std::vector<nlohmann::json>>;

/// {"data", "one_sample_percent", "majority_percent", "methods": [mean and sd of the test accuracy
/// at the final, best-on-validation and best-on-test epoch], "differences": [final epoch, each
/// method minus the first one, paired by seed]}
nlohmann::json summarise(const std::vector<std::string>& labels, const RunSummaries& runs,
                         const std::string& data);

/// The table and the differences of a summary, in percent.
std::string table_text(const nlohmann::json& summary, const RunSummaries& runs);

}  // namespace kktorch
