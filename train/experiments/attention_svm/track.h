#pragma once
// Training of the one-layer model on data of the user's, watched by the margin tracker: the job of
// `kktorch svm track`, in the form of an experiment (reproduction.h).
#include <filesystem>
#include <optional>
#include <string>

#include "ops/svm_solve.h"
#include "train/experiments/experiment.h"
#include "train/loop/attention_descent.h"

namespace kktorch::attention_svm {

struct TrackOptions {
  std::string head = "linear", loss = "logistic";  ///< as of AttSvmModelOptions
  double lbd = 0;                                  ///< of the head quad
  std::string select = "argmax";  ///< the tracker's selection: "argmax", "opt" or "file"
  AttentionDescentOptions descent;
  int64_t iterations = 1000;
  double stop_cosine = 1;  ///< ends the training at a certified cosine above it
  bool nuclear = true;
  int64_t solve_after = 20;
  double solve_seconds = 60;
};

struct TrackData {
  std::filesystem::path file;           ///< where it comes from, for the record
  TokenSets sets;                       ///< float64
  at::Tensor labels;                    ///< [Q]
  at::Tensor v;                         ///< [dx], or [units, dx] with the head relu
  at::Tensor weights;                   ///< flat: W [dx, dz], or K [dx, m] and then Q [dz, m]
  std::optional<at::Tensor> selection;  ///< alpha [Q] or bool [nnz], with select "file"
};

/// One training run with a row of the tracker's fields for every iteration in metrics.jsonl and
/// metrics.csv, and its curves and last values as tables. The state is kept in checkpoint.pt.
/// @throws c10::Error  as MarginTracker, where data or weights do not fit.
Experiment track(const TrackOptions& options, const TrackData& data);

}  // namespace kktorch::attention_svm
