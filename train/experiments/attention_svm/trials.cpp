#include "train/experiments/attention_svm/trials.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>

#include "csrc/svm/operators.h"
#include "train/loop/progress.h"
#include "train/loop/trials.h"

namespace kktorch::attention_svm {
namespace {

using nlohmann::json;

constexpr int64_t kBlock = 50;  // trials of a part

csrc::SvmTask task_of(const Problem& problem, const std::vector<int64_t>& alpha) {
  const auto sets = problem.sets();
  return {.sets = sets, .pairs = csrc::pairs_of_alpha(sets.row_ptr, sets.Q, alpha.data())};
}

}  // namespace

std::vector<json> trials_in_blocks(Context& context, const std::string& name, int64_t first,
                                   int64_t last, const std::function<json(int64_t)>& trial) {
  std::vector<json> results;
  Progress progress(name, last - first, 0);
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, last);
    const auto block =
        context.part(fmt::format("{}-{}-{}", name, begin, end - 1), [&](const auto&) {
          std::vector<json> found(end - begin);
          std::mutex mutex;
          int64_t done = begin - first;
          run_trials(end - begin, [&](int64_t i) {
            stop_if_interrupted();
            found[i] = trial(begin + i);
            const std::lock_guard lock(mutex);
            progress.update(++done);
          });
          return json(found);
        });
    for (const auto& result : block) results.push_back(result);
    progress.update(end - first);
  }
  return results;
}

csrc::SvmResult solve(const Problem& problem, const std::vector<int64_t>& alpha, csrc::SvmNorm norm,
                      std::optional<double> tol) {
  csrc::SvmSettings settings;
  settings.norm = norm;
  settings.tol = tol;
  return csrc::solve_svm(task_of(problem, alpha), settings);
}

csrc::Certificate certify(const Problem& problem, const std::vector<int64_t>& alpha,
                          const std::vector<double>& W, const std::vector<double>& lam,
                          csrc::SvmNorm norm) {
  const auto task = task_of(problem, alpha);
  std::vector<double> multipliers;
  for (const auto entry : task.pairs.inequality.entry)
    multipliers.push_back(std::max(0.0, lam[entry]));
  return csrc::certificate(task.sets, task.pairs, W.data(), multipliers.data(), norm,
                           /*ranks=*/false);
}

csrc::LocalOptimality local_optimality(const Problem& problem, const std::vector<int64_t>& alpha,
                                       const csrc::SvmResult& svm,
                                       const std::vector<double>& gamma) {
  if (svm.status != csrc::SvmStatus::kOptimal) return csrc::LocalOptimality::kUnresolved;
  const auto task = task_of(problem, alpha);
  std::vector<double> margins(task.pairs.inequality.size());
  csrc::pair_margins(task.sets, task.pairs.anchor, task.pairs.inequality, svm.w.data(),
                     margins.data());
  return csrc::local_optimality(task.pairs, margins, gamma.data(), svm.certificate.margin_error);
}

double cosine(const std::vector<double>& a, const std::vector<double>& b) {
  const auto dot = [](const std::vector<double>& u, const std::vector<double>& v) {
    return std::inner_product(u.begin(), u.end(), v.begin(), 0.0);
  };
  return dot(a, b) / std::sqrt(dot(a, a) * dot(b, b));
}

json defined(double value) { return std::isfinite(value) ? json(value) : json(nullptr); }

std::vector<double> values_at(const std::vector<json>& trials, const std::string& place) {
  const json::json_pointer pointer(place);
  std::vector<double> values;
  for (const auto& trial : trials)
    if (trial.contains(pointer) && trial.at(pointer).is_number())
      values.push_back(trial.at(pointer).get<double>());
  return values;
}

double median(std::vector<double> values) {
  if (values.empty()) return std::nan("");
  const auto middle = values.begin() + values.size() / 2;
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

Cell summary_cell(const std::vector<double>& values, size_t trials, const std::string& format) {
  if (values.empty()) return "-";
  auto cell = spread_cell(values, format);
  if (values.size() < trials)
    cell["text"] =
        fmt::format("{} ({} of {})", cell["text"].get<std::string>(), values.size(), trials);
  return cell;
}

Cell median_cell(const std::vector<double>& values, const std::string& format) {
  return values.empty() ? Cell("-") : number_cell(median(values), format);
}

Cell share_cell(int64_t hits, int64_t trials) {
  if (trials == 0) return "-";
  const double share = static_cast<double>(hits) / static_cast<double>(trials);
  auto cell = number_cell(share, "{:.3f}");
  cell["text"] = fmt::format("{:.3f} ({} of {})", share, hits, trials);
  const auto [low, high] = wilson_interval(hits, trials);
  cell["low"] = low;
  cell["high"] = high;
  return cell;
}

int64_t count_true(const std::vector<json>& trials, const std::string& place) {
  const json::json_pointer pointer(place);
  return std::count_if(trials.begin(), trials.end(), [&](const json& trial) {
    return trial.contains(pointer) && trial.at(pointer) == true;
  });
}

}  // namespace kktorch::attention_svm
