#include "train/dynamics/descent.h"

#include <chrono>
#include <cmath>

#include "ops/project_ball.h"
#include "train/common/error.h"
#include "train/experiments/context.h"
#include "train/loop/checkpoint.h"
#include "train/loop/interrupt.h"
#include "train/loop/seed_stream.h"

namespace kktorch::dynamics {
namespace {

at::Tensor head_norms(const at::Tensor& offset) {
  return offset.reshape({offset.size(0), -1}).norm(2, 1);
}

}  // namespace

Descent::Descent(std::vector<Block> blocks, Objective objective, DescentOptions options)
    : blocks_(std::move(blocks)),
      objective_(std::move(objective)),
      options_(std::move(options)),
      projected_(blocks_.size()) {
  const auto& o = options_;
  if (o.steps < 1 || o.samples < 1)
    fail("descent: expected steps, samples >= 1, but got {} and {}", o.steps, o.samples);
  if (!(o.step_size > 0) || !std::isfinite(o.step_size))
    fail("descent: expected a finite step size > 0, but got {}", o.step_size);
  if (o.batch < 0 || o.evaluate_every < 1)
    fail("descent: expected batch >= 0 and evaluate_every >= 1, but got {} and {}", o.batch,
         o.evaluate_every);
  for (auto& block : blocks_) {
    if (!(block.radius >= 0))
      fail("descent: expected a radius >= 0 of {}, but got {}", block.name, block.radius);
    if (!block.value.isfinite().all().item<bool>())
      fail("descent: expected finite {}, but got numbers that are not", block.name);
    start_.push_back(block.value.detach().clone());
    block.value = block.value.detach().clone();
    if (o.average) sum_.push_back(torch::zeros_like(block.value, torch::kDouble));
  }
}

std::vector<at::Tensor> Descent::parameters() const {
  std::vector<at::Tensor> values;
  for (const auto& block : blocks_) values.push_back(block.value);
  return values;
}

double Descent::distance(size_t block) const {
  return (blocks_[block].value - start_[block]).norm().item<double>();
}

double Descent::head_distance(size_t block) const {
  return head_norms(blocks_[block].value - start_[block]).max().item<double>();
}

double Descent::infeasibility() const {
  double largest = 0;
  for (size_t b = 0; b < blocks_.size(); ++b)
    if (const double radius = blocks_[b].radius; std::isfinite(radius) && radius > 0)
      largest = std::max(largest, head_distance(b) / radius - 1);
  return largest;
}

std::vector<at::Tensor> Descent::average() const {
  std::vector<at::Tensor> means;
  for (size_t b = 0; b < sum_.size(); ++b)
    means.push_back((sum_[b] / static_cast<double>(step_)).to(blocks_[b].value.scalar_type()));
  return means;
}

at::Tensor Descent::draw_batch() const {
  SeedStream stream(options_.seed, "batches", static_cast<uint64_t>(step_));
  const auto batch = torch::empty({options_.batch}, torch::kLong);
  for (int64_t i = 0; i < options_.batch; ++i)
    batch[i] = static_cast<int64_t>(stream.below(static_cast<uint64_t>(options_.samples)));
  return batch;
}

void Descent::record(const Evaluation& evaluation) {
  if (step_ == 0) first_loss_ = evaluation.loss;
  if (evaluation.loss < running_min_) {
    running_min_ = evaluation.loss;
    step_of_min_ = step_;
  }
  diverged_ = !std::isfinite(evaluation.loss) ||
              evaluation.loss > 10 * std::max(first_loss_, options_.loss_floor);
}

void Descent::update(const Evaluation& evaluation) {
  double squares = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    auto& block = blocks_[b];
    if (options_.average) sum_[b] += block.value;
    auto next = block.value - options_.step_size * evaluation.gradients[b];
    if (std::isfinite(block.radius)) {
      const auto [inside, moved] = project_ball(next, start_[b], block.radius);
      projected_[b] = moved.to(torch::kDouble).mean().item<double>();
      next = inside;
    }
    squares += (next - block.value).square().sum().item<double>();
    block.value = next;
  }
  path_length_ += std::sqrt(squares);
  ++step_;
}

void Descent::run(const Observer& observer) {
  const at::NoGradGuard no_grad;
  load();
  auto saved = std::chrono::steady_clock::now();
  for (;;) {
    const bool last = step_ == options_.steps;
    const bool whole = options_.batch == 0 || last || step_ % options_.evaluate_every == 0;
    Evaluation evaluation;
    if (whole) {
      evaluation = objective_(parameters(), {});
      record(evaluation);
      observer(*this, evaluation);
    }
    if (last || diverged_) return;
    if (options_.batch > 0) evaluation = objective_(parameters(), draw_batch());
    update(evaluation);
    const auto now = std::chrono::steady_clock::now();
    const bool interrupted = interrupt_signal() != 0;
    if (!options_.folder.empty() &&
        (interrupted ||
         std::chrono::duration<double>(now - saved).count() >= options_.checkpoint_seconds)) {
      save();
      saved = now;
    }
    if (interrupted) throw Interrupted();
  }
}

void Descent::save() const {
  Checkpoint checkpoint;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    checkpoint.model[blocks_[b].name] = blocks_[b].value;
    if (options_.average) checkpoint.optimizer["sum " + blocks_[b].name] = sum_[b];
  }
  checkpoint.rng = torch::empty({0}, torch::kByte);  // batches are drawn from (seed, step)
  checkpoint.progress = {{"step", step_},
                         {"step_of_min", step_of_min_},
                         {"running_min", running_min_},
                         {"first_loss", first_loss_},
                         {"path_length", path_length_}};
  save_checkpoint(options_.folder / "descent.pt", checkpoint);
}

void Descent::load() {
  const auto file = options_.folder / "descent.pt";
  if (options_.folder.empty() || !std::filesystem::exists(file)) return;
  auto checkpoint = load_checkpoint(file);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    blocks_[b].value = checkpoint.model.at(blocks_[b].name);
    if (options_.average) sum_[b] = checkpoint.optimizer.at("sum " + blocks_[b].name);
  }
  step_ = checkpoint.progress.at("step").toLong();
  step_of_min_ = checkpoint.progress.at("step_of_min").toLong();
  running_min_ = checkpoint.progress.at("running_min").toDouble();
  first_loss_ = checkpoint.progress.at("first_loss").toDouble();
  path_length_ = checkpoint.progress.at("path_length").toDouble();
}

}  // namespace kktorch::dynamics
