#pragma once
// What an experiment found: tables whose cells are text for a reader and numbers for a plot.
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "train/loop/statistics.h"

namespace kktorch {

/// A cell of text, or of a number with its spread: the JSON object {"text", "value", and "sd" or
/// "low" and "high" where they are known}.
using Cell = nlohmann::ordered_json;

/// @param format  of one number, as in fmt::format, e.g. "{:.1f}".
Cell number_cell(double value, const std::string& format);

/// "mean ± sd" over seeds; the mean alone for one seed.
Cell spread_cell(std::span<const double> values, const std::string& format);

/// "value ± half the width": the text of an interval that is (nearly) symmetric about `value`.
Cell interval_cell(double value, const Interval& interval, const std::string& format);

/// "mean ± half the width" of the 95 % Student-t interval of the mean; the mean alone for one
/// value.
Cell mean_cell(std::span<const double> values, const std::string& format);

/// "mean [low, high]" of a_i - b_i, the 95 % Student-t interval; without one for a single pair, and
/// for differences that are all the same.
Cell difference_cell(std::span<const double> a, std::span<const double> b,
                     const std::string& format);

/// The largest of values, with the smallest and the largest as its range.
Cell largest_cell(std::span<const double> values, const std::string& format);

/// The slope of a power law with the interval that is drawn about it.
struct SlopeLine {
  double slope, low, high;
};

/// Draws the rows of a table as series over its columns or, as a "scatter", as points whose
/// places are their first two numbers. The columns of a "power" are numbers: both axes are
/// logarithmic, and each row has its line.
struct Figure {
  std::string axis;    ///< what the numbers are, with their unit; of a scatter, the second ones
  std::string across;  ///< what the columns are; of a scatter, the first numbers
  bool logarithmic = false;  ///< of the numbers; zeros are then left out
  /// or "bars", "stacked", "curves", "log-curves" (columns on a logarithmic axis), "scatter",
  /// "cloud", "plane", "power"
  const char* form = "points";
  std::vector<SlopeLine> lines = {};  ///< of a power, one for each row; slopes may be NaN
  bool only = false;  ///< the report shows the figure and folds the table; it is not printed
};

struct ResultTable {
  std::string title;                 ///< with the epoch that the numbers are of, unless columns say
  std::vector<std::string> columns;  ///< of all cells; the first one names the rows
  std::vector<std::vector<Cell>> rows;
  std::string note;  ///< what spreads are, how much one sample weighs
  std::optional<Figure> figure;
};

/// Adds the tables `more` behind `tables`.
void append(std::vector<ResultTable>& tables, std::vector<ResultTable> more);

/// {"title", "columns", "rows", "note", "figure": null or {"axis", "across", "logarithmic",
/// "form", "only", and of a power "lines"}}
nlohmann::ordered_json to_json(const ResultTable& table);

/// Title, aligned columns and note of a table in its JSON form.
std::string table_text(const nlohmann::ordered_json& table);

/// A method in an experiment over seeds: values[c][s] belongs to column c and seed s. All methods
/// of a table have the same columns and seeds.
struct MethodValues {
  std::string method;
  std::vector<std::vector<double>> values;
};

/// Rows of "mean ± sd" over seeds, a row per method.
std::vector<std::vector<Cell>> mean_rows(const std::vector<MethodValues>& methods,
                                         const std::string& format);

/// Rows "method − first method" of paired differences with their 95 % t-intervals.
std::vector<std::vector<Cell>> difference_rows(const std::vector<MethodValues>& methods,
                                               const std::string& format);

}  // namespace kktorch
