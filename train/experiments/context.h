#pragma once
// What an experiment works with: its settings and seeds, and its run folder, where the parts that
// are finished are found again.
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/dynamics/invariants.h"

namespace kktorch {

/// Thrown where a signal asked a running experiment to stop; finished parts are kept.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "interrupted"; }
};

/// @throws Interrupted after Ctrl-C or SIGTERM.
void stop_if_interrupted();

/// For the `progress` of a solve or a training: goes on, or throws Interrupted as above.
inline constexpr auto unless_interrupted = [](const auto&...) {
  stop_if_interrupted();
  return true;
};

class Context {
 public:
  /// @param invariants  what a violated bound of an experiment on training dynamics does.
  Context(nlohmann::ordered_json settings, uint64_t first_seed, std::filesystem::path folder,
          dynamics::InvariantMode invariants = dynamics::InvariantMode::kError)
      : settings_(std::move(settings)),
        first_seed_(first_seed),
        folder_(std::move(folder)),
        invariants_(invariants) {}

  const nlohmann::ordered_json& settings() const { return settings_; }

  /// As many consecutive seeds as the settings say.
  std::vector<uint64_t> seeds() const;

  /// A part of the experiment, e.g. one method with one seed: the folder `name` inside the run
  /// folder, whose summary.json holds what `compute` returned. A finished part is read back.
  /// @param compute  called with the existing folder; its files (metrics, checkpoints) go there.
  /// @throws Interrupted before the part; DivergedError if a number of it is not finite.
  nlohmann::json part(const std::string& name,
                      const std::function<nlohmann::json(const std::filesystem::path&)>& compute);

  /// Parts that do not depend on each other, spread over the CPU threads (train/loop/trials.h):
  /// compute(i, folder) for names[i].
  std::vector<nlohmann::json> parts(
      const std::vector<std::string>& names,
      const std::function<nlohmann::json(size_t, const std::filesystem::path&)>& compute);

  std::filesystem::path folder_of(const std::string& part) const { return folder_ / part; }

  dynamics::InvariantMode invariants() const { return invariants_; }

  /// Time that all parts took, those that were read back included.
  double seconds() const { return seconds_; }

 private:
  nlohmann::json read_back(const std::filesystem::path& folder);

  nlohmann::ordered_json settings_;
  uint64_t first_seed_;
  std::filesystem::path folder_;
  dynamics::InvariantMode invariants_;
  double seconds_ = 0;
};

}  // namespace kktorch
