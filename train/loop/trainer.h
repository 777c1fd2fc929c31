#pragma once
// Training of a classifier: the mean cross-entropy over shuffled batches, measured every epoch.
//
// Deterministic: batches, dropout and the schedule are functions of the seed and the step, so that
// on one thread a run that was stopped and resumed ends in the same bits as one that was not.
#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "train/common/error.h"
#include "train/loop/batches.h"
#include "train/loop/checkpoint.h"
#include "train/loop/optimiser.h"

namespace kktorch {

struct TrainerOptions {
  int64_t epochs = 100;
  int64_t steps = 0;  ///< if positive, the number of updates, whatever `epochs` says
  int64_t batch_size = 32;
  uint64_t seed = 0;
  OptimiserOptions optimiser;
};

/// The loss or a gradient became NaN or infinite.
class DivergedError : public UserError {
  using UserError::UserError;
};

/// Mean cross-entropy and fraction of correct predictions; NaN for no examples.
struct Score {
  double loss, accuracy;
};

/// One epoch as the metrics files have it, counted from 1; seconds of the training batches alone.
struct EpochRecord {
  int64_t epoch = 0, step = 0;
  double learning_rate = 0;
  Score train{}, valid{}, test{};
  double seconds = 0;
};

struct TrainerState {
  int64_t epoch = 0;                           ///< completed epochs
  int64_t batch = 0;                           ///< completed batches of the current epoch
  int64_t step = 0;                            ///< completed updates
  double loss_sum = 0, correct = 0, seen = 0;  ///< of the current epoch
  double epoch_seconds = 0, seconds = 0;       ///< of the current epoch; of the whole run
  EpochRecord last;                            ///< epoch 0: none
  EpochRecord best_validation;  ///< highest validation accuracy; ties: lowest loss, then earliest
  EpochRecord best_test;  ///< likewise on the test data: optimistic, for comparison with published
                          ///< numbers only
};

class Trainer {
 public:
  /// Logits [b, K] of the inputs and the padding mask of b examples.
  using Forward =
      std::function<at::Tensor(const at::Tensor& inputs, const at::Tensor& padding_mask)>;

  struct Data {
    Examples fit, validation, test;  // validation may be empty
  };

  struct Observer {
    std::function<void(const TrainerState&)> on_batch;  ///< after every update
    std::function<void(const EpochRecord&)> on_epoch;   ///< after every epoch, before on_checkpoint
    std::function<void(const Checkpoint&)>
        on_checkpoint;                     ///< after every epoch, and where a run stops
    std::function<bool()> stop_requested;  ///< asked before every batch
  };

  /// Seeds LibTorch's generator for dropout. `model` must outlive the trainer.
  Trainer(torch::nn::Module& model, Forward forward, Data data, TrainerOptions options);

  /// Trains up to the last step; the last epoch may end in its middle. @return false if
  /// stop_requested ended it before.
  /// @throws DivergedError before a bad value reaches a checkpoint.
  bool run(const Observer& observer);

  Checkpoint checkpoint() const;
  /// Continues where `checkpoint` was taken. @throws UserError if it belongs to another model.
  void restore(const Checkpoint& checkpoint);

  const TrainerState& state() const { return state_; }
  int64_t total_steps() const { return total_steps_; }

 private:
  void train_batch(const Examples& batch);
  EpochRecord finish_epoch();

  torch::nn::Module& model_;
  Forward forward_;
  Data data_;
  TrainerOptions options_;
  int64_t batches_per_epoch_, total_steps_;
  Optimiser optimiser_;
  TrainerState state_;
};

/// Logits [n, K] in evaluation mode, without gradients; the mode of `model` is restored.
at::Tensor evaluate_logits(torch::nn::Module& model, const Trainer::Forward& forward,
                           const Examples& examples);

/// Loss and accuracy of logits [n, K] against labels [n].
Score score(const at::Tensor& logits, const at::Tensor& labels);

}  // namespace kktorch
