#pragma once
// What the experiments on multi-head gradient descent share: data of the mixture model by settings,
// and trained runs.
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/dynamics/multihead.h"
#include "train/experiments/context.h"
#include "train/experiments/sweep.h"

namespace kktorch::multihead {

namespace model = dynamics::multihead;

/// Settings of E4 to E8: the noiseless mixture with T = 10, zeta = 0.2, M = 8, d = 10, S = 1.
nlohmann::ordered_json mixture_settings(int64_t n, int64_t seeds);
/// Of the texts among them.
std::map<std::string, std::vector<std::string>> mixture_choices();
model::MixtureOptions mixture_options(const nlohmann::json& settings);

/// Samples that losses of the population are estimated on: max(3000, 10 n), fewer in preset smoke.
int64_t test_size(const nlohmann::json& settings, int64_t n);

/// One run of gradient descent.
struct Training {
  const model::Data &data, &test;
  const model::Params& start;
  double step_size;
  int64_t steps;
  uint64_t seed = 1;
  bool tangent_kernel = false;
  bool curvature = false;  ///< Hessian and I5 at 0, K/8, K/2 and K
};

struct Trained {
  nlohmann::json summary;  ///< flat; "diverged" where the run stopped early
  model::Params params;    ///< the last ones
};

/// Rows in metrics.csv and metrics.jsonl of the folder (a row describes the state before its
/// update).
Trained train(const Training& training, const Context& context,
              const std::filesystem::path& folder);

/// Training and test samples of one trial, and where the descent starts with H heads.
struct Trial {
  model::Data data, test;
  model::Params start;
};

/// Sweeps over the numbers of heads "H" of the settings, with the constant step and with the step
/// that grows like sqrt(H); a table of means and exponents for each.
std::vector<ResultTable> sweep_heads(Context& context, const std::string& label,
                                     const std::function<Trial(int64_t H, uint64_t seed)>& trial);

}  // namespace kktorch::multihead
