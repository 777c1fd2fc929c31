#include "train/experiments/result.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "train/loop/slope.h"
#include "train/loop/table.h"

namespace kktorch {
namespace {

std::string formatted(double value, const std::string& format) {
  return fmt::format(fmt::runtime(format), value);
}

std::string text_of(const Cell& cell) {
  return (cell.is_string() ? cell : cell.at("text")).get<std::string>();
}

}  // namespace

Cell number_cell(double value, const std::string& format) {
  return {{"text", formatted(value, format)}, {"value", value}};
}

Cell spread_cell(std::span<const double> values, const std::string& format) {
  auto cell = number_cell(mean(values), format);
  if (values.size() < 2) return cell;
  cell["sd"] = sample_sd(values);
  cell["text"] = text_of(cell) + " ± " + formatted(sample_sd(values), format);
  return cell;
}

Cell interval_cell(double value, const Interval& interval, const std::string& format) {
  const auto half = formatted((interval.high - interval.low) / 2, format);
  return {{"text", formatted(value, format) + " ± " + half},
          {"value", value},
          {"low", interval.low},
          {"high", interval.high}};
}

Cell difference_cell(std::span<const double> a, std::span<const double> b,
                     const std::string& format) {
  const auto difference = paired_difference(a, b);
  auto cell = number_cell(difference.mean, format);
  if (std::isnan(difference.low)) return cell;
  if (difference.high - difference.low < 1e-9) {
    // Few seeds on few samples agree by chance: an interval of width zero would claim too much.
    cell["text"] = text_of(cell) + ", every seed";
    return cell;
  }
  cell["text"] = fmt::format("{} [{}, {}]", text_of(cell), formatted(difference.low, format),
                             formatted(difference.high, format));
  cell["low"] = difference.low;
  cell["high"] = difference.high;
  return cell;
}

Cell mean_cell(std::span<const double> values, const std::string& format) {
  const auto [mean, low, high] = mean_interval(values);
  if (std::isnan(low)) return number_cell(mean, format);
  return interval_cell(mean, {low, high}, format);
}

Cell largest_cell(std::span<const double> values, const std::string& format) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  auto cell = number_cell(*high, format);
  cell["low"] = *low;
  cell["high"] = *high;
  return cell;
}

void append(std::vector<ResultTable>& tables, std::vector<ResultTable> more) {
  std::move(more.begin(), more.end(), std::back_inserter(tables));
}

nlohmann::ordered_json to_json(const ResultTable& table) {
  nlohmann::ordered_json figure;
  if (table.figure)
    figure = {{"axis", table.figure->axis},
              {"across", table.figure->across},
              {"logarithmic", table.figure->logarithmic},
              {"form", table.figure->form},
              {"only", table.figure->only}};
  if (table.figure)
    for (const auto& [slope, low, high] : table.figure->lines)
      figure["lines"].push_back({{"slope", slope}, {"low", low}, {"high", high}});
  return {{"title", table.title},
          {"columns", table.columns},
          {"rows", table.rows},
          {"note", table.note},
          {"figure", figure}};
}

std::string table_text(const nlohmann::ordered_json& table) {
  Table printed(table.at("columns").get<std::vector<std::string>>());
  for (const auto& row : table.at("rows")) {
    std::vector<std::string> cells;
    for (const auto& cell : row) cells.push_back(text_of(cell));
    printed.add(cells);
  }
  const auto note = table.at("note").get<std::string>();
  return fmt::format("{}\n\n{}{}", table.at("title").get<std::string>(), printed.text(),
                     note.empty() ? "" : note + '\n');
}

std::vector<std::vector<Cell>> mean_rows(const std::vector<MethodValues>& methods,
                                         const std::string& format) {
  std::vector<std::vector<Cell>> rows;
  for (const auto& [method, values] : methods) {
    auto& row = rows.emplace_back(1, method);
    for (const auto& seeds : values) row.push_back(spread_cell(seeds, format));
  }
  return rows;
}

std::vector<std::vector<Cell>> difference_rows(const std::vector<MethodValues>& methods,
                                               const std::string& format) {
  std::vector<std::vector<Cell>> rows;
  const auto& first = methods.front();
  for (size_t m = 1; m < methods.size(); ++m) {
    auto& row = rows.emplace_back(1, methods[m].method + " − " + first.method);
    for (size_t c = 0; c < first.values.size(); ++c)
      row.push_back(difference_cell(methods[m].values.at(c), first.values[c], format));
  }
  return rows;
}

}  // namespace kktorch
