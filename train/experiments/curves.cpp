#include "train/experiments/curves.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "train/loop/metrics.h"

namespace kktorch {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "{:.3g}";
constexpr size_t kManySteps = 20;  // beyond them a curve has its powers of 2 and its end

/// Numbers of runs by step, in the order of the runs; a run that logged none of a step is left out.
using ByStep = std::map<int64_t, std::vector<double>>;

struct Rows {
  std::vector<std::vector<std::vector<json>>> of;  // [trial][i][row]

  explicit Rows(const Sweep& sweep) {
    for (const auto& trial : sweep.folders) {
      auto& runs = of.emplace_back();
      for (const auto& folder : trial) runs.push_back(read_metrics(folder));
    }
  }

  void add(ByStep& numbers, const std::string& column, size_t i) const {
    for (const auto& trial : of)
      for (const auto& row : trial[i])
        if (row.at(column).is_number()) numbers[row.at("step")].push_back(row.at(column));
  }

  size_t trials() const { return of.size(); }
};

std::vector<int64_t> thinned(const std::set<int64_t>& steps) {
  std::vector<int64_t> kept;
  for (const auto step : steps)
    if (steps.size() <= kManySteps || (step & (step - 1)) == 0 || step == *steps.rbegin())
      kept.push_back(step);
  return kept;
}

/// A row for each label, a column for each step; a cell of the numbers where there are any.
template <typename MakeCell>
ResultTable drawn_table(const std::string& title, const std::string& note,
                        const std::vector<std::string>& labels, const std::vector<ByStep>& rows,
                        const Figure& figure, const MakeCell& make_cell) {
  std::set<int64_t> steps;
  for (const auto& row : rows)
    for (const auto& [step, numbers] : row) steps.insert(step);
  const auto columns = thinned(steps);
  ResultTable table{title, {"step"}, {}, note, figure};
  for (const auto step : columns) table.columns.push_back(std::to_string(step));
  for (size_t r = 0; r < rows.size(); ++r) {
    auto& row = table.rows.emplace_back(std::vector<Cell>{labels[r]});
    for (const auto step : columns) {
      const auto found = rows[r].find(step);
      row.push_back(found == rows[r].end() ? Cell("–") : make_cell(found->second));
    }
  }
  return table;
}

Figure figure_of(const std::string& axis, bool logarithmic) {
  return {.axis = axis,
          .across = "step",
          .logarithmic = logarithmic,
          .form = "log-curves",
          .only = true};
}

}  // namespace

std::vector<ResultTable> curve_tables(const Sweep& sweep, const std::string& title,
                                      const std::string& across, const std::vector<Curve>& curves) {
  const Rows rows(sweep);
  std::vector<std::string> labels;
  const auto symbol = across.substr(across.rfind(' ') + 1);
  for (const double x : sweep.x) labels.push_back(fmt::format("{} = {}", symbol, x));
  std::vector<ResultTable> tables;
  for (const auto& curve : curves) {
    std::vector<ByStep> numbers(sweep.x.size());
    for (size_t i = 0; i < sweep.x.size(); ++i) {
      rows.add(numbers[i], curve.column, i);
      std::erase_if(numbers[i], [&](const auto& s) { return s.second.size() < rows.trials(); });
    }
    tables.push_back(
        drawn_table(fmt::format("{}: {}", title, curve.title),
                    "Means over trials, with 95 % Student-t intervals.", labels, numbers,
                    figure_of(curve.title, curve.logarithmic),
                    [](const std::vector<double>& values) { return mean_cell(values, kFormat); }));
  }
  return tables;
}

ResultTable bound_table(const Sweep& sweep, const std::string& title,
                        const std::vector<Curve>& ratios) {
  const Rows rows(sweep);
  std::vector<std::string> labels;
  std::vector<ByStep> numbers;
  for (const auto& ratio : ratios) {
    labels.push_back(ratio.title);
    auto& all = numbers.emplace_back();
    for (size_t i = 0; i < sweep.x.size(); ++i) rows.add(all, ratio.column, i);
  }
  return drawn_table(
      title + ": bounds against what was measured",
      "The largest ratio of all runs at a step; bands reach down to the smallest. A bound holds "
      "where its ratio is at most 1.",
      labels, numbers, figure_of("measured / bound", true),
      [](const std::vector<double>& values) { return largest_cell(values, kFormat); });
}

}  // namespace kktorch
