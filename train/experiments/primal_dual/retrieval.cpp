// retrieval: how much a nuisance offset and gain that all keys of a sample share disturbs retrieval
// by softmax attention, by Attention-BN and by controls, untrained and trained (retrieval_task.h).
#include <torch/optim/adam.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "train/common/error.h"
#include "train/experiments/context.h"
#include "train/experiments/primal_dual/experiments.h"
#include "train/experiments/primal_dual/retrieval_head.h"
#include "train/experiments/primal_dual/retrieval_task.h"
#include "train/loop/metrics.h"
#include "train/loop/progress.h"
#include "train/loop/seed_stream.h"
#include "train/loop/trainer.h"

namespace kktorch::primal_dual {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr auto kAcross = "(sd of the offset, sd of the logarithm of the gain)";

ordered_json settings(Preset preset) {
  using Pairs = std::vector<std::vector<double>>;
  const Pairs all = {{0, 0}, {1, 0}, {2, 0}, {5, 0}, {0, 1}, {2, 1}, {5, 2}};
  return {
      {"width", 32},
      {"keys", 64},
      {"eps", kNormEps},
      {"samples", by_preset(preset, 100, 2000, 2000)},
      {"offset_gain", all},
      {"trained_offset_gain", by_preset<Pairs>(preset, {{2, 1}}, {{0, 0}, {2, 1}, {5, 2}}, all)},
      {"steps", by_preset(preset, 3, 500, 2000)},
      {"batch", 64},
      {"learning_rate", 1e-3},
      {"seeds", by_preset(preset, 2, 3, 5)}};
}

std::vector<Nuisance> nuisances(const json& pairs) {
  std::vector<Nuisance> all;
  for (const auto& pair : pairs) all.push_back({.offset = pair.at(0), .gain = pair.at(1)});
  return all;
}

std::vector<std::string> columns(const std::vector<Nuisance>& nuisances) {
  std::vector<std::string> names = {"method"};
  for (const auto& [offset, gain] : nuisances)
    names.push_back(fmt::format("({}, {})", offset, gain));
  return names;
}

/// How many of the samples have their largest probability at the target.
int64_t hits(const RetrievalHead& head, const RetrievalBatch& batch) {
  const at::NoGradGuard no_grad;
  const auto found = head.probabilities(batch.query, batch.keys).argmax(1);
  return (found == batch.target).sum().item<int64_t>();
}

class Retrieval {
 public:
  explicit Retrieval(Context& context)
      : context_(context),
        settings_(context.settings()),
        size_{.keys = settings_.at("keys"), .width = settings_.at("width")},
        samples_(settings_.at("samples")),
        steps_(settings_.at("steps")),
        trained_(nuisances(settings_.at("trained_offset_gain"))) {}

  std::vector<ResultTable> run() {
    auto tables = untrained_tables();
    append(tables, trained_tables());
    return tables;
  }

 private:
  RetrievalBatch test_batch(uint64_t seed, const Nuisance& nuisance) const {
    auto generator = generator_of(seed, "retrieval test");
    return draw_batch(samples_, size_, nuisance, generator);
  }

  std::vector<ResultTable> untrained_tables();
  json measure_untrained(const std::vector<Nuisance>& nuisances) const;

  std::vector<ResultTable> trained_tables();
  json train_method(const RetrievalMethod& method, uint64_t seed,
                    const std::filesystem::path& folder, Progress& progress, int64_t done) const;
  void train(RetrievalHead& head, const Nuisance& nuisance, uint64_t seed, MetricsSink& metrics,
             const std::function<void(int64_t)>& on_step) const;

  Context& context_;
  json settings_;
  RetrievalSize size_;
  int64_t samples_, steps_;
  std::vector<Nuisance> trained_;
};

// ---- untrained

json Retrieval::measure_untrained(const std::vector<Nuisance>& nuisances) const {
  const at::NoGradGuard no_grad;
  json hit_counts, control_errors = json::array();
  for (const auto& nuisance : nuisances) {
    const auto batch = test_batch(context_.seeds().front(), nuisance);
    at::Tensor softmax, keys_centred;
    for (const auto& method : retrieval_methods()) {
      if (method.differs_only_by_training()) continue;
      const RetrievalHead head(method, size_.width);
      hit_counts[method.name].push_back(hits(head, batch));
      // By the formula: the op centres the keys itself, and would be compared with itself.
      if (method.name == "softmax") softmax = head.logits(batch.query, batch.keys).softmax(1);
      if (method.name == "keys-centred") keys_centred = head.probabilities(batch.query, batch.keys);
    }
    control_errors.push_back((softmax - keys_centred).abs().max().item<double>());
  }
  return {{"hits", hit_counts}, {"control_errors", control_errors}};
}

std::vector<ResultTable> Retrieval::untrained_tables() {
  const auto nuisances = primal_dual::nuisances(settings_.at("offset_gain"));
  const auto found = context_.part(
      "untrained", [&](const std::filesystem::path&) { return measure_untrained(nuisances); });
  std::vector<std::vector<Cell>> rows;
  for (const auto& method : retrieval_methods()) {
    if (method.differs_only_by_training()) continue;
    auto& row = rows.emplace_back(1, method.title);
    for (const int64_t count : found.at("hits").at(method.name)) {
      const auto [low, high] = wilson_interval(count, samples_);
      row.push_back(interval_cell(100.0 * count / samples_, {100 * low, 100 * high}, "{:.1f}"));
    }
  }
  std::vector<Cell> errors = {"largest difference"};
  for (const double error : found.at("control_errors"))
    errors.push_back(number_cell(error, "{:.0e}"));
  return {
      {.title = "Top-1 accuracy [%], untrained, by (offset, gain)",
       .columns = columns(nuisances),
       .rows = rows,
       .note = fmt::format("{} samples; ±: half the 95 % Wilson interval. One sample = {:.3f} %.",
                           samples_, 100.0 / samples_),
       .figure = Figure{.axis = "top-1 accuracy, untrained [%]", .across = kAcross}},
      {.title = "Control: probabilities of softmax with and without the mean of the keys, "
                "untrained, by (offset, gain)",
       .columns = columns(nuisances),
       .rows = {errors},
       .note =
           "Softmax by its formula against the op on keys without their mean: rounding, because "
           "softmax does not see what is subtracted from every key.",
       .figure = {}}};
}

// ---- trained

void Retrieval::train(RetrievalHead& head, const Nuisance& nuisance, uint64_t seed,
                      MetricsSink& metrics, const std::function<void(int64_t)>& on_step) const {
  torch::optim::Adam adam(head.parameters(), settings_.at("learning_rate").get<double>());
  auto generator = generator_of(seed, "retrieval training");
  const auto interval = std::max<int64_t>(1, steps_ / 20);
  for (int64_t step = 1; step <= steps_; ++step) {
    stop_if_interrupted();
    const auto batch = draw_batch(settings_.at("batch"), size_, nuisance, generator);
    const auto logits = head.logits(batch.query, batch.keys);
    const auto loss = torch::cross_entropy_loss(logits, batch.target);
    const auto value = loss.item<double>();
    if (!std::isfinite(value))
      throw DivergedError(
          fmt::format("retrieval: expected a finite loss, but got {} at step {}", value, step));
    adam.zero_grad();
    loss.backward();
    adam.step();
    on_step(step);
    if (step % interval == 0)
      metrics.append({{"offset", nuisance.offset},
                      {"gain", nuisance.gain},
                      {"step", step},
                      {"loss", value},
                      {"accuracy", score(logits.detach(), batch.target).accuracy}});
  }
}

json Retrieval::train_method(const RetrievalMethod& method, uint64_t seed,
                             const std::filesystem::path& folder, Progress& progress,
                             int64_t done) const {
  MetricsSink metrics(folder);
  metrics.keep_until(0, "step");
  json accuracy, beta;
  for (const auto& nuisance : trained_) {
    RetrievalHead head(method, size_.width);
    train(head, nuisance, seed, metrics, [&](int64_t step) { progress.update(done + step); });
    done += steps_;
    const double percent = 100.0 * hits(head, test_batch(seed, nuisance)) / samples_;
    progress.note(done, fmt::format("{} seed {} {:.1f} %", method.title, seed, percent));
    accuracy.push_back(percent);
    beta.push_back(head.beta());
  }
  return {{"accuracy", accuracy}, {"beta", beta}};
}

std::vector<ResultTable> Retrieval::trained_tables() {
  const auto& methods = retrieval_methods();
  const auto seeds = context_.seeds();
  const auto steps_per_part = steps_ * std::ssize(trained_);
  Progress progress("retrieval", steps_per_part * std::ssize(methods) * std::ssize(seeds), 0);
  std::vector<MethodValues> accuracy, beta;
  for (const auto& method : methods) {
    accuracy.push_back({method.title, std::vector<std::vector<double>>(trained_.size())});
    if (method.learned_beta) beta.push_back(accuracy.back());
  }
  int64_t done = 0;
  for (const auto seed : seeds) {  // outside: a run that is stopped early holds pairs
    for (size_t m = 0, learned = 0; m < methods.size(); ++m, done += steps_per_part) {
      const auto found =
          context_.part(fmt::format("{}-seed{}", methods[m].name, seed), [&](const auto& folder) {
            return train_method(methods[m], seed, folder, progress, done);
          });
      for (size_t c = 0; c < trained_.size(); ++c) {
        accuracy[m].values[c].push_back(found.at("accuracy").at(c));
        if (methods[m].learned_beta) beta[learned].values[c].push_back(found.at("beta").at(c));
      }
      learned += methods[m].learned_beta;
    }
  }
  const auto when = fmt::format("after step {}, by (offset, gain)", steps_);
  const auto seeds_note =
      fmt::format("Mean ± sample standard deviation over {} seeds.", seeds.size());
  return {{.title = "Top-1 accuracy [%], trained, " + when,
           .columns = columns(trained_),
           .rows = mean_rows(accuracy, "{:.2f}"),
           .note = fmt::format("{} {} fresh samples each; one sample = {:.3f} %.", seeds_note,
                               samples_, 100.0 / samples_),
           .figure = Figure{.axis = "top-1 accuracy, trained [%]", .across = kAcross}},
          {.title = "Difference to softmax [percentage points], trained, " + when,
           .columns = columns(trained_),
           .rows = difference_rows(accuracy, "{:+.2f}"),
           .note = "Paired by seed, with the 95 % Student-t interval: one that holds 0 shows none.",
           .figure = Figure{.axis = "accuracy minus that of softmax, trained [points]",
                            .across = kAcross}},
          {.title = "Learned β, trained, " + when,
           .columns = columns(trained_),
           .rows = mean_rows(beta, "{:.3f}"),
           .note = seeds_note + " It starts at 1.",
           .figure = {}}};
}

}  // namespace

Experiment retrieval() {
  return {
      .paper = kPaper,
      .name = "retrieval",
      .title = "Retrieval under a shared offset and gain",
      .claim =
          "The paper reads Attention-BN as softmax attention in which the similarity of a query "
          "and "
          "a key is reduced by the mean similarity of that key to all keys; checked here, on a "
          "task "
          "of our own: how often the largest logit is the target's when all keys of a sample share "
          "an offset and a gain, against softmax attention and simpler remedies.",
      .limits =
          "anything about real data, about the paper's tasks, or about trained networks: the task "
          "is made for the effect, and a head of one layer is all there is. Where a method wins "
          "untrained, learned maps may close the gap; the values of β, and whether to divide by "
          "the standard deviation, are our choices.",
      .times = {"2 s", "3 min", "45 min"},
      .settings = settings,
      .run = [](Context& context) { return Retrieval(context).run(); }};
}

}  // namespace kktorch::primal_dual
