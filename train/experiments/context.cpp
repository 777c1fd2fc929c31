#include "train/experiments/context.h"

#include <chrono>
#include <cmath>

#include "train/common/error.h"
#include "train/common/files.h"
#include "train/loop/interrupt.h"
#include "train/loop/trainer.h"
#include "train/loop/trials.h"
#include "train/runs/run_config.h"

namespace kktorch {
namespace {

using nlohmann::json;

void check_finite(const json& result, const std::string& part) {
  const auto numbers = result.flatten();
  for (const auto& [place, value] : numbers.items())
    if (value.is_number_float() && !std::isfinite(value.get<double>()))
      throw DivergedError(fmt::format("reproduce: expected finite numbers in {}, but got {} at {}",
                                      part, value.get<double>(), place));
}

constexpr const char* kSummary = "summary.json";

/// Computes a part and writes its summary.
void compute_part(const std::string& name, const std::filesystem::path& folder,
                  const std::function<json()>& compute) {
  stop_if_interrupted();
  make_folder(folder);
  const auto start = std::chrono::steady_clock::now();
  auto result = compute();
  check_finite(result, name);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  const json summary = {{"seconds", elapsed.count()}, {"result", std::move(result)}};
  write_file(folder / kSummary, summary.dump(2) + '\n');
}

}  // namespace

void stop_if_interrupted() {
  if (interrupt_signal() != 0) throw Interrupted();
}

std::vector<uint64_t> Context::seeds() const {
  const auto count = settings_.at("seeds").get<int64_t>();
  if (count < 1) fail("seeds: expected at least 1, but got {}", count);
  std::vector<uint64_t> seeds(static_cast<size_t>(count));
  for (size_t i = 0; i < seeds.size(); ++i) seeds[i] = first_seed_ + i;
  return seeds;
}

json Context::part(const std::string& name,
                   const std::function<json(const std::filesystem::path&)>& compute) {
  const auto folder = folder_of(name);
  if (!std::filesystem::exists(folder / kSummary))
    compute_part(name, folder, [&] { return compute(folder); });
  return read_back(folder);
}

std::vector<json> Context::parts(
    const std::vector<std::string>& names,
    const std::function<json(size_t, const std::filesystem::path&)>& compute) {
  std::vector<size_t> missing;
  for (size_t i = 0; i < names.size(); ++i)
    if (!std::filesystem::exists(folder_of(names[i]) / kSummary)) missing.push_back(i);
  run_trials(static_cast<int64_t>(missing.size()), [&](int64_t job) {
    const size_t i = missing[static_cast<size_t>(job)];
    const auto folder = folder_of(names[i]);
    compute_part(names[i], folder, [&] { return compute(i, folder); });
  });
  std::vector<json> results;
  for (const auto& name : names) results.push_back(read_back(folder_of(name)));
  return results;
}

json Context::read_back(const std::filesystem::path& folder) {
  const auto summary = read_json(folder / kSummary);
  seconds_ += summary.at("seconds").get<double>();
  return summary.at("result");
}

}  // namespace kktorch
