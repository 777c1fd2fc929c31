#pragma once
// Experiments that measure numbers over a range of one quantity and over trials, and fit exponents.
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/experiments/context.h"
#include "train/experiments/result.h"
#include "train/loop/slope.h"

namespace kktorch {

/// What compute returned, and where: results[trial][i] and folders[trial][i] belong to x[i] and the
/// seed of the trial.
struct Sweep {
  std::string variable;
  std::vector<double> x;
  std::vector<std::vector<nlohmann::json>> results;
  std::vector<std::vector<std::filesystem::path>> folders;

  /// A number of every result: [trial][i].
  std::vector<std::vector<double>> values(const std::string& key) const;
};

/// A list among the settings.
std::vector<double> numbers(const nlohmann::json& list);

/// Parts "<variable><x>-seed<seed>" for all x and all seeds, spread over the CPU threads.
/// @param compute  returns a flat object of finite numbers; called with the folder of its part.
Sweep run_sweep(Context& context, const std::string& variable, const std::vector<double>& x,
                const std::function<nlohmann::json(double x, uint64_t seed,
                                                   const std::filesystem::path& folder)>& compute);

struct Statistic {
  std::string key, title;
  std::string theory = "";  ///< the exponent that theory states, or what it bounds
  bool fitted = true;
};

/// Two tables: means with Student-t intervals, drawn with both axes logarithmic, and the exponents
/// of the statistics that are fitted.
/// @param across  what x is; `axis`: what the numbers are.
std::vector<ResultTable> sweep_tables(const Sweep& sweep, const std::string& title,
                                      const std::string& across, const std::string& axis,
                                      const std::vector<Statistic>& statistics,
                                      const std::string& note = "");

/// Statistics of a sweep as numbers only, means with intervals.
ResultTable mean_table(const Sweep& sweep, const std::string& title, const std::string& across,
                       const std::vector<Statistic>& statistics, const std::string& note = "");

}  // namespace kktorch
