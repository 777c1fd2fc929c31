#pragma once
// Curves of a sweep's runs against the step, from the rows that its parts have logged.
#include <string>
#include <vector>

#include "train/experiments/result.h"
#include "train/experiments/sweep.h"

namespace kktorch {

/// A column of metrics.jsonl.
struct Curve {
  std::string column, title;
  bool logarithmic = true;
};

/// A table for each curve, drawn by the report only: a row for each x, means over trials with
/// 95 % Student-t intervals at the steps that all trials logged.
/// @param across  what x is; its last word is the symbol.
std::vector<ResultTable> curve_tables(const Sweep& sweep, const std::string& title,
                                      const std::string& across, const std::vector<Curve>& curves);

/// Ratios of what was measured to what bounds it, drawn by the report only: a row for each, the
/// largest of all runs at the logged steps with the smallest as the other end of its band.
ResultTable bound_table(const Sweep& sweep, const std::string& title,
                        const std::vector<Curve>& ratios);

}  // namespace kktorch
