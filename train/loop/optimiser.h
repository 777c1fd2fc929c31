#pragma once
// AdamW (Loshchilov & Hutter 2019) with linear warm-up, cosine or linear decay, and gradient
// clipping.
#include <torch/nn/module.h>
#include <torch/optim/adamw.h>

#include <cstdint>
#include <map>
#include <string>

namespace kktorch {

struct OptimiserOptions {
  double learning_rate = 1e-3;  ///< at the end of the warm-up
  double weight_decay =
      5e-4;  ///< decoupled; the re-centring strengths (parameters named `beta`) are never decayed
  double clip = 4;               ///< largest norm of all gradients together
  double warmup = 0.1;           ///< fraction of the steps
  std::string decay = "cosine";  ///< after the warm-up, to zero: "cosine" or "linear"
};

/// lr * min(1, (step+1)/w) during the w warm-up steps, then lr * (1 + cos(pi * progress))/2 or
/// lr * (1 - progress), progress 0 → 1.
double scheduled_learning_rate(const OptimiserOptions& options, int64_t step, int64_t total_steps);

using TensorMap = std::map<std::string, at::Tensor>;

class Optimiser {
 public:
  /// @param total_steps  length of the schedule.
  Optimiser(const torch::nn::Module& model, OptimiserOptions options, int64_t total_steps);

  void zero_grad() { adamw_.zero_grad(); }

  /// Clips the gradients and updates the parameters with the learning rate of `step` (from 0).
  /// @return false, with all parameters as they were, if a gradient is not finite.
  bool update(int64_t step);

  double learning_rate(int64_t step) const {
    return scheduled_learning_rate(options_, step, total_steps_);
  }

  /// "exp_avg/<parameter>", "exp_avg_sq/…", "step/…"; empty before the first update.
  TensorMap state() const;

  /// Takes over what state() returned. @throws UserError if it belongs to other parameters.
  void load_state(const TensorMap& state);

 private:
  OptimiserOptions options_;
  int64_t total_steps_;
  torch::OrderedDict<std::string, at::Tensor> parameters_;
  torch::optim::AdamW adamw_;
};

}  // namespace kktorch
