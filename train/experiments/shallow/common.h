#pragma once
// What the experiments on shallow transformers share: data, teacher and trained runs.
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/dynamics/shallow.h"
#include "train/experiments/context.h"
#include "train/experiments/curves.h"
#include "train/experiments/logged_steps.h"
#include "train/experiments/per_seed.h"

namespace kktorch::shallow {

namespace model = dynamics::shallow;

/// Settings of E1 to E6: inputs, balls, teacher; n samples, a number of trials.
nlohmann::ordered_json base_settings(int64_t n, int64_t seeds);
/// Of the texts among them.
std::map<std::string, std::vector<std::string>> base_choices();

/// Labelled data of one trial, and the teacher that labelled them.
struct Problem {
  model::Radii rho;
  model::Teacher teacher;
  model::Data data;
};
/// @throws UserError if rho < nu: the comparator would not be feasible.
Problem problem_of(const nlohmann::json& settings, uint64_t seed);
/// The same for every part of a seed: labels are most of the work of some experiments.
inline PerSeed<Problem> problems_of(const nlohmann::json& settings) {
  return PerSeed<Problem>([settings](uint64_t seed) { return problem_of(settings, seed); });
}
/// A problem without labels.
Problem unlabelled_problem_of(const nlohmann::json& settings, uint64_t seed);

/// Population variance. @throws UserError if it is below 1e-12.
double variance(const at::Tensor& y);

/// One run of (projected) descent on labelled data, in a part of an experiment.
struct Training {
  const model::Data& data;
  const model::Params& phi0;
  model::Radii rho, nu;
  int64_t steps;
  int64_t batch = 0;
  uint64_t seed = 1;
  bool linear_twin = false;  ///< a descent on the linearised model beside it
  bool tangent_kernel = false;
};

/// Rows in metrics.csv and metrics.jsonl of the folder; the summary as a flat object. A run that
/// diverged keeps its rows and says so in "diverged".
nlohmann::json train(const Training& training, const Context& context,
                     const std::filesystem::path& folder);

/// Curves of the runs of a sweep, and the bounds along them, for the report.
/// @param more  curves beside those of the loss and of the error of linearisation.
std::vector<ResultTable> run_tables(const Sweep& sweep, const std::string& title,
                                    const std::string& across, std::vector<Curve> more = {});

}  // namespace kktorch::shallow
