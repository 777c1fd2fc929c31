#include "train/runs/comparison_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "train/loop/statistics.h"
#include "train/loop/table.h"
#include "train/runs/run.h"

namespace kktorch {
namespace {

using nlohmann::json;

std::vector<double> accuracies(const std::vector<json>& runs, const std::string& column) {
  std::vector<double> values;
  for (const auto& run : runs)
    values.push_back(run.at(column).is_null() ? std::nan("")
                                              : run.at(column).at("test_accuracy").get<double>());
  return values;
}

/// Accuracy of the class that the test data have most of; rows of `confusion` are true classes.
double majority_percent(const json& confusion) {
  int64_t all = 0, most = 0;
  for (const auto& row : confusion) {
    int64_t cases = 0;
    for (const auto& count : row) cases += count.get<int64_t>();
    all += cases, most = std::max(most, cases);
  }
  return 100.0 * static_cast<double>(most) / static_cast<double>(all);
}

double number(const json& value) { return value.is_number() ? value.get<double>() : std::nan(""); }

std::string percent(const json& statistics) {
  const double center = number(statistics.at("mean")), spread = number(statistics.at("sd"));
  if (std::isnan(center)) return "-";
  return std::isnan(spread) ? fmt::format("{:.2f}", 100 * center)
                            : fmt::format("{:.2f} ± {:.2f}", 100 * center, 100 * spread);
}

std::string interval_text(const json& difference) {
  const auto low = number(difference.at("ci95").at(0)), high = number(difference.at("ci95").at(1));
  if (std::isnan(low)) return "no interval from one seed";
  // Few seeds on few test cases agree by chance: an interval of width zero would claim too much.
  if (high - low < 1e-9) return "the same for every seed";
  return fmt::format("paired 95 % t-interval [{:+.2f}, {:+.2f}]", 100 * low, 100 * high);
}

std::string difference_text(const json& difference, double one_sample_percent) {
  const double points = 100 * number(difference.at("mean"));
  return fmt::format("{} - {}, final epoch: {:+.2f} points = {:+.1f} test cases, {}\n",
                     difference.at("a").get<std::string>(), difference.at("b").get<std::string>(),
                     points, points / one_sample_percent, interval_text(difference));
}

}  // namespace

json summarise(const std::vector<std::string>& labels, const RunSummaries& runs,
               const std::string& data) {
  json methods = json::array(), differences = json::array();
  const auto& reference = runs.at(labels.front());
  for (const auto& label : labels) {
    const auto& own = runs.at(label);
    json method = {{"method", label}, {"seeds", own.size()}};
    for (const auto& [key, heading] : kChosenEpochs) {
      const auto values = accuracies(own, key);
      method[key] = {{"mean", mean(values)}, {"sd", sample_sd(values)}};
    }
    methods.push_back(method);
    if (label == labels.front()) continue;
    const auto difference =
        paired_difference(accuracies(own, "final"), accuracies(reference, "final"));
    differences.push_back({{"a", label},
                           {"b", labels.front()},
                           {"column", "final"},
                           {"mean", difference.mean},
                           {"ci95", {difference.low, difference.high}}});
  }
  return {{"data", data},
          {"one_sample_percent", 100 / reference.front().at("test_size").get<double>()},
          {"majority_percent", majority_percent(reference.front().at("confusion"))},
          {"methods", methods},
          {"differences", differences}};
}

std::string table_text(const json& summary, const RunSummaries& runs) {
  std::vector<std::string> header = {"method"};
  for (const auto& epoch : kChosenEpochs) header.emplace_back(epoch.label);
  header.insert(header.end(), {"parameters", "seconds"});
  Table table(header);
  for (const auto& method : summary.at("methods")) {
    const auto label = method.at("method").get<std::string>();
    std::vector<std::string> row = {label};
    for (const auto& epoch : kChosenEpochs) row.push_back(percent(method.at(epoch.key)));
    double seconds = 0;
    for (const auto& run : runs.at(label)) seconds += run.at("seconds").get<double>();
    row.push_back(runs.at(label).front().at("parameters").dump());
    row.push_back(fmt::format("{:.1f}", seconds / static_cast<double>(runs.at(label).size())));
    table.add(row);
  }
  const auto seeds = runs.begin()->second.size();
  std::string text = fmt::format(
      "{}: test accuracy in %, {}; one test case = {:.2f} %; always the most frequent class: "
      "{:.2f} %\n\n{}\n",
      summary.at("data").get<std::string>(),
      seeds == 1 ? "one seed" : fmt::format("mean ± sd over {} seeds", seeds),
      summary.at("one_sample_percent").get<double>(), summary.at("majority_percent").get<double>(),
      table.text());
  for (const auto& difference : summary.at("differences"))
    text += difference_text(difference, summary.at("one_sample_percent").get<double>());
  return text;
}

}  // namespace kktorch
