#pragma once
// (Projected, stochastic) gradient descent on blocks of parameters:
//
//     theta <- Proj(theta - eta grad L_B(theta))        for steps s = 0 ... K - 1
//
// The observer sees the state of step s before its update, and once more the final state (s = K).
// With a folder, the state is kept in it, so that an interrupted run goes on where it stood.
#include <torch/torch.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace kktorch::dynamics {

constexpr double kUnbounded = std::numeric_limits<double>::infinity();

/// A parameter [heads, ...], inside balls of this radius about its start, one for each head.
struct Block {
  std::string name;
  at::Tensor value;
  double radius = kUnbounded;
};

/// A loss with its gradients, one for each block.
struct Evaluation {
  double loss;
  at::Tensor outputs;
  std::vector<at::Tensor> gradients;
};

/// @param batch  indices of samples, undefined for all.
using Objective =
    std::function<Evaluation(const std::vector<at::Tensor>& parameters, const at::Tensor& batch)>;

struct DescentOptions {
  double step_size = 0;
  int64_t steps = 0;
  int64_t samples = 0;           ///< n
  int64_t batch = 0;             ///< drawn with replacement; 0: all samples
  uint64_t seed = 0;             ///< of the batches
  bool average = false;          ///< keeps the mean of the iterates
  double loss_floor = 0;         ///< a loss above 10 max(this, the first one) has diverged
  int64_t evaluate_every = 1;    ///< with batches: the loss over all samples every so many steps
  std::filesystem::path folder;  ///< of the checkpoint; empty: none
  double checkpoint_seconds = 20;
};

class Descent {
 public:
  Descent(std::vector<Block> blocks, Objective objective, DescentOptions options);

  /// Called with the evaluation over all samples; with batches only where there is one.
  using Observer = std::function<void(const Descent&, const Evaluation&)>;

  /// Runs, or goes on, to the end, or until it diverges.
  /// @throws Interrupted after Ctrl-C, with the state in the folder.
  void run(const Observer& observer);

  int64_t step() const { return step_; }
  bool diverged() const { return diverged_; }
  double running_min() const { return running_min_; }
  int64_t step_of_min() const { return step_of_min_; }
  double path_length() const { return path_length_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  const std::vector<at::Tensor>& start() const { return start_; }
  std::vector<at::Tensor> parameters() const;

  /// ||theta_b - theta_b(0)||.
  double distance(size_t block) const;
  /// max over heads of ||theta_bi - theta_bi(0)||.
  double head_distance(size_t block) const;
  /// Share of the heads of a block that the last update projected.
  double projected(size_t block) const { return projected_[block]; }
  /// max over blocks and heads of ||theta_bi - theta_bi(0)|| / radius - 1, at least 0.
  double infeasibility() const;
  /// Mean of the iterates before the current one. Needs options.average and a step.
  std::vector<at::Tensor> average() const;

 private:
  Evaluation evaluate();
  void update(const Evaluation& evaluation);
  void record(const Evaluation& evaluation);
  at::Tensor draw_batch() const;
  void save() const;
  void load();

  std::vector<Block> blocks_;
  std::vector<at::Tensor> start_, sum_;
  Objective objective_;
  DescentOptions options_;
  std::vector<double> projected_;
  int64_t step_ = 0, step_of_min_ = 0;
  double running_min_ = kUnbounded, first_loss_ = 0, path_length_ = 0;
  bool diverged_ = false;
};

}  // namespace kktorch::dynamics
