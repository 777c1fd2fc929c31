#pragma once
// What a comparison of attentions found: summary.json and the printed table.
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace kktorch {

/// attention → summary.json of each seed, the same seeds for every attention.
using RunSummaries = std::map<std::string, std::vector<nlohmann::json>>;

/// {"data", "one_sample_percent", "methods": [mean and sd of the test accuracy at the final,
/// best-on-validation and best-on-test epoch], "differences": [final epoch, each attention minus
/// the first one, paired by seed]}
nlohmann::json summarise(const std::vector<std::string>& attentions, const RunSummaries& runs,
                         const std::string& data);

/// The table and the differences of a summary, in percent.
std::string table_text(const nlohmann::json& summary, const RunSummaries& runs);

}  // namespace kktorch
