#include "train/experiments/context.h"

#include <chrono>
#include <cmath>

#include "train/common/files.h"
#include "train/loop/interrupt.h"
#include "train/loop/trainer.h"
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

}  // namespace

void stop_if_interrupted() {
  if (interrupt_signal() != 0) throw Interrupted();
}

std::vector<uint64_t> Context::seeds() const {
  std::vector<uint64_t> seeds(settings_.at("seeds").get<size_t>());
  for (size_t i = 0; i < seeds.size(); ++i) seeds[i] = first_seed_ + i;
  return seeds;
}

json Context::part(const std::string& name,
                   const std::function<json(const std::filesystem::path&)>& compute) {
  const auto folder = folder_ / name, file = folder / "summary.json";
  if (!std::filesystem::exists(file)) {
    stop_if_interrupted();
    make_folder(folder);
    const auto start = std::chrono::steady_clock::now();
    auto result = compute(folder);
    check_finite(result, name);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    const json summary = {{"seconds", elapsed.count()}, {"result", std::move(result)}};
    write_file(file, summary.dump(2) + '\n');
  }
  const auto summary = read_json(file);
  seconds_ += summary.at("seconds").get<double>();
  return summary.at("result");
}

}  // namespace kktorch
