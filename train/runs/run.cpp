#include "train/runs/run.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "train/common/error.h"
#include "train/common/files.h"
#include "train/loop/interrupt.h"
#include "train/loop/metrics.h"
#include "train/loop/progress.h"
#include "train/loop/seed_stream.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

Trainer::Data split_data(const RunConfig& config, const Dataset& dataset) {
  if (dataset.validation.size() > 0) return {dataset.train, dataset.validation, dataset.test};
  const auto& all = dataset.train;
  const auto split = stratified_split(all.labels, config.training.validation, config.training.seed);
  return {all.select(split.rest), all.select(split.held_out), dataset.test};
}

Classifier initial_model(const RunConfig& config, const Examples& fit) {
  seed_torch(config.training.seed, "initial weights");
  auto model = make_classifier(config.model);
  standardise(model, fit);
  return model;
}

TrainerOptions trainer_options(const TrainingConfig& training) {
  return {.epochs = training.epochs,
          .steps = training.steps,
          .batch_size = training.batch_size,
          .seed = training.seed,
          .optimiser = {.learning_rate = training.learning_rate,
                        .weight_decay = training.weight_decay,
                        .clip = training.clip,
                        .warmup = training.warmup,
                        .decay = training.decay}};
}

nlohmann::ordered_json metrics_row(const EpochRecord& record) {
  return {{"epoch", record.epoch},
          {"step", record.step},
          {"lr", record.learning_rate},
          {"train_loss", record.train.loss},
          {"train_accuracy", record.train.accuracy},
          {"valid_loss", record.valid.loss},
          {"valid_accuracy", record.valid.accuracy},
          {"test_loss", record.test.loss},
          {"test_accuracy", record.test.accuracy},
          {"seconds", record.seconds}};
}

std::string progress_note(const EpochRecord& record, int64_t epochs) {
  const auto valid = std::isnan(record.valid.accuracy)
                         ? ""
                         : fmt::format("valid {:.1f} ", 100 * record.valid.accuracy);
  return fmt::format("epoch {}/{} loss {:.4f} {}test {:.1f} %", record.epoch, epochs,
                     record.train.loss, valid, 100 * record.test.accuracy);
}

json chosen_epoch(const EpochRecord& record) {
  return {{"epoch", record.epoch},
          {"test_accuracy", record.test.accuracy},
          {"test_loss", record.test.loss},
          {"valid_accuracy", record.valid.accuracy}};
}

/// Counts [K][K]: rows are true classes, columns predicted ones.
std::vector<std::vector<int64_t>> confusion_matrix(const at::Tensor& predicted,
                                                   const at::Tensor& labels, size_t classes) {
  std::vector<std::vector<int64_t>> counts(classes, std::vector<int64_t>(classes));
  for (int64_t i = 0; i < labels.size(0); ++i)
    ++counts[static_cast<size_t>(labels[i].item<int64_t>())]
            [static_cast<size_t>(predicted[i].item<int64_t>())];
  return counts;
}

json run_summary(const RunConfig& config, const Classifier& model, const Examples& test,
                 const TrainerState& state) {
  int64_t parameters = 0;
  for (const auto& parameter : module_of(model).parameters()) parameters += parameter.numel();
  const auto predicted = evaluate_logits(module_of(model), forward_of(model), test).argmax(1);
  return {{"method", config.method},
          {"seed", config.training.seed},
          {"parameters", parameters},
          {"seconds", state.seconds},
          {"threads", at::get_num_threads()},
          {"test_size", test.size()},
          {"final", chosen_epoch(state.last)},
          // Without held-out cases there is nothing to choose by.
          {"best_validation",
           config.data.validation_size > 0 ? chosen_epoch(state.best_validation) : json()},
          {"best_test", chosen_epoch(state.best_test)},
          {"confusion", confusion_matrix(predicted, test.labels, config.data.class_labels.size())},
          {"class_labels", config.data.class_labels}};
}

/// The trainer's eyes and hands in the run folder.
Trainer::Observer observe(const fs::path& folder, Progress& progress, int64_t epochs) {
  return {
      .on_batch = [&progress](const TrainerState& state) { progress.update(state.step); },
      .on_epoch =
          [folder, epochs, &progress](const EpochRecord& record) {
            MetricsSink(folder).append(metrics_row(record));
            progress.note(record.step, progress_note(record, epochs));
          },
      .on_checkpoint =
          [folder](const Checkpoint& state) { save_checkpoint(folder / "checkpoint.pt", state); },
      .stop_requested = [] { return interrupt_signal() != 0; }};
}

/// The runs inside `folder`, for the message to someone who named their common folder.
std::string runs_inside(const fs::path& folder) {
  std::string names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (fs::exists(entry.path() / "checkpoint.pt"))
      names += (names.empty() ? "" : ", ") + entry.path().string();
  return names.empty() ? "" : " (runs inside it: " + names + ")";
}

}  // namespace

Classifier initial_model(const RunConfig& config, const Dataset& dataset) {
  return initial_model(config, split_data(config, dataset).fit);
}

std::optional<json> train_run(const fs::path& folder, const RunConfig& config,
                              const Dataset& dataset, const std::string& label,
                              const ModelChange& change) {
  if (fs::exists(folder / "config.json"))
    check_same_config(folder / "config.json", to_json(config));
  if (fs::exists(folder / "summary.json")) return read_json(folder / "summary.json");
  make_folder(folder);
  write_file(folder / "config.json", to_json(config).dump(2) + '\n');

  const auto data = split_data(config, dataset);
  const auto model = initial_model(config, data.fit);
  if (change) change(module_of(model));
  Trainer trainer(module_of(model), forward_of(model), data, trainer_options(config.training));
  if (fs::exists(folder / "checkpoint.pt"))
    trainer.restore(load_checkpoint(folder / "checkpoint.pt"));
  MetricsSink(folder).keep_until(trainer.state().epoch);

  {
    Progress progress(label, trainer.total_steps(), trainer.state().step);
    if (!trainer.run(observe(folder, progress, config.training.epochs))) return {};
  }
  if (!change) save_torchscript(model, folder / "model.ts");
  auto summary = run_summary(config, model, data.test, trainer.state());
  write_file(folder / "summary.json", summary.dump(2) + '\n');
  return summary;
}

TrainedModel load_run(const fs::path& folder) {
  if (!fs::exists(folder / "config.json") || !fs::exists(folder / "checkpoint.pt"))
    fail(
        "{}: expected the folder of one run, holding config.json and checkpoint.pt, but got none{}",
        folder.string(), runs_inside(folder));
  auto config = read_run_config(folder / "config.json");
  auto model = make_classifier(config.model);
  load_model_state(module_of(model), load_checkpoint(folder / "checkpoint.pt").model);
  module_of(model).eval();
  return {std::move(config), std::move(model)};
}

}  // namespace kktorch
