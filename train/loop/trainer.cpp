#include "train/loop/trainer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>

#include <cmath>
#include <limits>

#include "train/common/clock.h"
#include "train/loop/seed_stream.h"

namespace kktorch {
namespace {

constexpr int64_t kEvaluationBatch = 64;

bool is_better(const Score& candidate, const Score& best) {
  return candidate.accuracy > best.accuracy ||
         (candidate.accuracy == best.accuracy && candidate.loss < best.loss);
}

// The numbers of a run by name, one list for saving and restoring: visit(name, number&).
template <typename Record, typename Visit>
void visit_record(const std::string& prefix, Record& record, const Visit& visit) {
  visit(prefix + "epoch", record.epoch);
  visit(prefix + "step", record.step);
  visit(prefix + "learning_rate", record.learning_rate);
  visit(prefix + "train_loss", record.train.loss);
  visit(prefix + "train_accuracy", record.train.accuracy);
  visit(prefix + "valid_loss", record.valid.loss);
  visit(prefix + "valid_accuracy", record.valid.accuracy);
  visit(prefix + "test_loss", record.test.loss);
  visit(prefix + "test_accuracy", record.test.accuracy);
  visit(prefix + "seconds", record.seconds);
}

template <typename State, typename Visit>
void visit_state(State& state, const Visit& visit) {
  visit("epoch", state.epoch);
  visit("batch", state.batch);
  visit("step", state.step);
  visit("loss_sum", state.loss_sum);
  visit("correct", state.correct);
  visit("seen", state.seen);
  visit("epoch_seconds", state.epoch_seconds);
  visit("seconds", state.seconds);
  visit_record("last/", state.last, visit);
  visit_record("best_validation/", state.best_validation, visit);
  visit_record("best_test/", state.best_test, visit);
}

at::Generator generator() { return at::globalContext().defaultGenerator(at::kCPU); }

}  // namespace

at::Tensor evaluate_logits(torch::nn::Module& model, const Trainer::Forward& forward,
                           const Examples& examples) {
  const at::NoGradGuard no_grad;
  const bool was_training = model.is_training();
  model.eval();
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < examples.size(); begin += kEvaluationBatch) {
    const auto batch = examples.narrow(begin, std::min(kEvaluationBatch, examples.size() - begin));
    parts.push_back(forward(batch.inputs, batch.padding_mask));
  }
  model.train(was_training);
  return at::cat(parts);
}

Score score(const at::Tensor& logits, const at::Tensor& labels) {
  return {at::cross_entropy_loss(logits.to(at::kDouble), labels).item<double>(),
          logits.argmax(1).eq(labels).to(at::kDouble).mean().item<double>()};
}

Trainer::Trainer(torch::nn::Module& model, Forward forward, Data data, TrainerOptions options)
    : model_(model),
      forward_(std::move(forward)),
      data_(std::move(data)),
      options_(options),
      batches_per_epoch_((data_.fit.size() + options.batch_size - 1) / options.batch_size),
      total_steps_(options.steps > 0 ? options.steps : options.epochs * batches_per_epoch_),
      optimiser_(model, options.optimiser, total_steps_) {
  seed_torch(options_.seed, "dropout");
}

bool Trainer::run(const Observer& observer) {
  model_.train();
  while (state_.step < total_steps_) {
    const auto batches =
        shuffled_batches(data_.fit.size(), options_.batch_size, options_.seed, state_.epoch);
    while (state_.batch < batches_per_epoch_ && state_.step < total_steps_) {
      if (observer.stop_requested()) {
        observer.on_checkpoint(checkpoint());
        return false;
      }
      train_batch(data_.fit.select(batches[static_cast<size_t>(state_.batch)]));
      observer.on_batch(state_);
    }
    observer.on_epoch(finish_epoch());
    observer.on_checkpoint(checkpoint());
  }
  return true;
}

void Trainer::train_batch(const Examples& batch) {
  const auto start = Clock::now();
  optimiser_.zero_grad();
  const auto logits = forward_(batch.inputs, batch.padding_mask);
  const auto loss = at::cross_entropy_loss(logits, batch.labels);
  const auto loss_value = loss.item<double>();
  if (std::isfinite(loss_value)) loss.backward();
  if (!std::isfinite(loss_value) || !optimiser_.update(state_.step))
    throw DivergedError(fmt::format(
        "training: expected a finite loss and gradient, but got loss {} in epoch {}, step {}",
        loss_value, state_.epoch + 1, state_.step + 1));
  const auto size = static_cast<double>(batch.size());
  state_.loss_sum += loss_value * size;
  state_.correct += static_cast<double>(logits.argmax(1).eq(batch.labels).sum().item<int64_t>());
  state_.seen += size;
  ++state_.batch, ++state_.step;
  const double seconds = seconds_since(start);
  state_.epoch_seconds += seconds, state_.seconds += seconds;
}

EpochRecord Trainer::finish_epoch() {
  const auto start = Clock::now();
  const auto measure = [&](const Examples& examples) {
    if (examples.size() == 0) return Score{std::nan(""), std::nan("")};
    const auto result = score(evaluate_logits(model_, forward_, examples), examples.labels);
    if (!std::isfinite(result.loss))
      throw DivergedError(
          fmt::format("training: expected finite logits after epoch {}, but got loss {}",
                      state_.epoch + 1, result.loss));
    return result;
  };
  const EpochRecord record{.epoch = state_.epoch + 1,
                           .step = state_.step,
                           .learning_rate = optimiser_.learning_rate(state_.step - 1),
                           .train = {state_.loss_sum / state_.seen, state_.correct / state_.seen},
                           .valid = measure(data_.validation),
                           .test = measure(data_.test),
                           .seconds = state_.epoch_seconds};
  state_.last = record;
  if (state_.best_validation.epoch == 0 || is_better(record.valid, state_.best_validation.valid))
    state_.best_validation = record;
  if (state_.best_test.epoch == 0 || is_better(record.test, state_.best_test.test))
    state_.best_test = record;
  state_.epoch = record.epoch, state_.batch = 0;
  state_.loss_sum = state_.correct = state_.seen = state_.epoch_seconds = 0;
  state_.seconds += seconds_since(start);
  return record;
}

Checkpoint Trainer::checkpoint() const {
  Checkpoint result{model_state(model_), optimiser_.state(), generator().get_state(), {}};
  visit_state(state_, [&](const std::string& name, auto value) { result.progress[name] = value; });
  return result;
}

void Trainer::restore(const Checkpoint& checkpoint) {
  load_model_state(model_, checkpoint.model);
  optimiser_.load_state(checkpoint.optimizer);
  generator().set_state(checkpoint.rng);
  visit_state(state_, [&](const std::string& name, auto& value) {
    const auto saved = checkpoint.progress.find(name);
    if (saved == checkpoint.progress.end())
      fail("checkpoint: expected progress/{}, but got none", name);
    value = saved->second.to<std::decay_t<decltype(value)>>();
  });
}

}  // namespace kktorch
