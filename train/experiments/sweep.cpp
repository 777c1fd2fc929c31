#include "train/experiments/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace kktorch {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "{:.3g}";
constexpr const char* kSlopeFormat = "{:.2f}";

std::string range_text(double low, double high) {
  if (std::isnan(low)) return "one trial";
  return fmt::format("[{:.2f}, {:.2f}]", low, high);
}

bool all_positive(const std::vector<std::vector<double>>& values) {
  return std::all_of(values.begin(), values.end(), [](const auto& trial) {
    return std::all_of(trial.begin(), trial.end(), [](double v) { return v > 0; });
  });
}

bool can_be_fitted(const Sweep& sweep, const Statistic& statistic) {
  return statistic.fitted && sweep.x.size() >= 3 && all_positive(sweep.values(statistic.key));
}

std::vector<Cell> slope_row(const Statistic& statistic, const PowerLaw& law) {
  return {statistic.title,
          number_cell(law.slope, kSlopeFormat),
          range_text(law.bootstrap.low, law.bootstrap.high),
          number_cell(law.per_trial.mean, kSlopeFormat),
          range_text(law.per_trial.low, law.per_trial.high),
          number_cell(law.r_squared, "{:.3f}"),
          statistic.theory,
          law.reliable() ? "" : "CI unreliable"};
}

}  // namespace

std::vector<std::vector<double>> Sweep::values(const std::string& key) const {
  std::vector<std::vector<double>> numbers;
  for (const auto& trial : results) {
    auto& row = numbers.emplace_back();
    for (const auto& result : trial) row.push_back(result.at(key).get<double>());
  }
  return numbers;
}

std::vector<double> numbers(const json& list) { return list.get<std::vector<double>>(); }

Sweep run_sweep(
    Context& context, const std::string& variable, const std::vector<double>& x,
    const std::function<json(double, uint64_t, const std::filesystem::path&)>& compute) {
  struct Job {
    size_t i, trial;
  };
  const auto seeds = context.seeds();
  std::vector<Job> jobs;  // the largest x first: they take longest
  std::vector<std::string> names;
  for (size_t i = x.size(); i-- > 0;)
    for (size_t trial = 0; trial < seeds.size(); ++trial) {
      jobs.push_back({i, trial});
      names.push_back(fmt::format("{}{}-seed{}", variable, x[i], seeds[trial]));
    }
  const auto results = context.parts(names, [&](size_t job, const auto& folder) {
    return compute(x[jobs[job].i], seeds[jobs[job].trial], folder);
  });
  Sweep sweep{variable, x, std::vector(seeds.size(), std::vector<json>(x.size())),
              std::vector(seeds.size(), std::vector<std::filesystem::path>(x.size()))};
  for (size_t job = 0; job < jobs.size(); ++job) {
    const auto [i, trial] = jobs[job];
    sweep.results[trial][i] = results[job];
    sweep.folders[trial][i] = context.folder_of(names[job]);
  }
  return sweep;
}

ResultTable mean_table(const Sweep& sweep, const std::string& title, const std::string& across,
                       const std::vector<Statistic>& statistics, const std::string& note) {
  ResultTable table{title, {across}, {}, note, {}};
  for (const double x : sweep.x) table.columns.push_back(fmt::format("{}", x));
  for (const auto& statistic : statistics) {
    const auto values = sweep.values(statistic.key);
    auto& row = table.rows.emplace_back(std::vector<Cell>{statistic.title});
    for (size_t i = 0; i < sweep.x.size(); ++i) {
      std::vector<double> of_trials;
      for (const auto& trial : values) of_trials.push_back(trial[i]);
      row.push_back(mean_cell(of_trials, kFormat));
    }
  }
  return table;
}

std::vector<ResultTable> sweep_tables(const Sweep& sweep, const std::string& title,
                                      const std::string& across, const std::string& axis,
                                      const std::vector<Statistic>& statistics,
                                      const std::string& note) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  auto means = mean_table(
      sweep, title, across, statistics,
      note + (note.empty() ? "" : " ") + "± is half the 95 % Student-t interval over trials.");
  means.figure = Figure{.axis = axis, .across = across, .logarithmic = true, .form = "power"};
  ResultTable slopes{title + ": exponents",
                     {"exponent of", "slope", "bootstrap 95 %", "mean per trial", "t 95 %", "R²",
                      "theory", "remark"},
                     {},
                     "Least squares of log(mean over trials) on the logarithm of " + across +
                         "; the bootstrap resamples trials 2000 times.",
                     {}};
  for (const auto& statistic : statistics) {
    if (!can_be_fitted(sweep, statistic)) {
      means.figure->lines.push_back({kNone, kNone, kNone});
      continue;
    }
    const auto law = fit_power_law(sweep.x, sweep.values(statistic.key), /*seed=*/1);
    means.figure->lines.push_back({law.slope, law.bootstrap.low, law.bootstrap.high});
    slopes.rows.push_back(slope_row(statistic, law));
  }
  if (slopes.rows.empty()) return {means};
  return {means, slopes};
}

}  // namespace kktorch
