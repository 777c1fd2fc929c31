// kktorch train: compares attentions on a data set.
#include <ATen/Parallel.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "train/cli/command.h"
#include "train/loop/interrupt.h"
#include "train/runs/comparison.h"

namespace kktorch::cli {
namespace {

constexpr auto kFooter = R"(Examples:
  kktorch train
      the main job: softmax attention and Attention-BN on JapaneseVowels, 3 seeds each
  kktorch train --data BasicMotions --seeds 5 --out runs/motions
  kktorch train --data ./MyData/My_TRAIN.ts --attention bn --beta-mode per_head
  kktorch train --resume
      continues after Ctrl-C, to the same bits on one thread

Training: AdamW with linear warm-up, then cosine decay to zero; gradients are
clipped. A part of the training file, stratified by class, is held out for
validation. Learning rate and weight decay were tried there on JapaneseVowels
(54 cases, 3 seeds, softmax): 3e-4 and 1e-3, and 5e-4 and 5e-2, differ by less
than one case; a learning rate of 3e-3 triples the validation loss.
Test data choose nothing. The column "best on test" takes the epoch from them:
it is optimistic, and printed for comparison with published numbers only.

Exit codes: 0 done, 1 error, 2 wrong command line, 3 loss not finite,
130 Ctrl-C, 143 SIGTERM.)";

struct Arguments {
  ComparisonOptions job{.attentions = {"softmax", "bn"}, .base = {}, .folder = {}};
  std::string data = "JapaneseVowels", data_dir;
  int threads = 0;
  bool resume = false, overwrite = false, no_std = false, no_ragged_masks = false;
};

const CLI::Validator kFraction(
    [](const std::string& text) {
      char* end = nullptr;
      const double value = std::strtod(text.c_str(), &end);
      const bool valid = *end == '\0' && value >= 0 && value < 1;
      return valid ? std::string() : "expected 0 <= value < 1, but got " + text;
    },
    "in [0, 1)");

void add_job_options(CLI::App& app, Arguments& args) {
  app.add_option("--data", args.data, "name of a data set, folder, or file <NAME>_TRAIN.ts")
      ->capture_default_str();
  app.add_option("--data-dir", args.data_dir,
                 "where to look for names first, before $KKTORCH_DATA and aeon's data");
  app.add_option("--attention", args.job.attentions,
                 "attentions to compare; the first one is the reference")
      ->delimiter(',')
      ->check(CLI::IsMember({"softmax", "bn"}))
      ->capture_default_str();
  app.add_option("--seeds", args.job.seeds, "runs per attention, with seeds 1 ... N")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--out", args.job.folder, "run folder (default: runs/<data>)");
  auto* resume = app.add_flag("--resume", args.resume,
                              "continue the runs in the run folder, or start if there are none");
  app.add_flag("--overwrite", args.overwrite, "replace the runs in the run folder")
      ->excludes(resume);
  app.add_option("--threads", args.threads, "CPU threads (default: LibTorch's choice)")
      ->check(CLI::PositiveNumber);
}

void add_training_options(CLI::App& app, TrainingConfig& training) {
  const auto group = "Training";
  const auto add = [&](const char* name, auto& value, const char* text,
                       const CLI::Validator& valid) {
    app.add_option(name, value, text)->check(valid)->capture_default_str()->group(group);
  };
  add("--epochs", training.epochs, "passes over the training data", CLI::PositiveNumber);
  add("--batch-size", training.batch_size, "series per update", CLI::PositiveNumber);
  add("--lr", training.learning_rate, "learning rate after the warm-up", CLI::NonNegativeNumber);
  add("--warmup", training.warmup, "fraction of the updates with a rising learning rate",
      kFraction);
  add("--weight-decay", training.weight_decay, "decoupled weight decay", CLI::NonNegativeNumber);
  add("--clip", training.clip, "largest norm of the gradient", CLI::PositiveNumber);
  add("--validation", training.validation, "fraction of the training file held out", kFraction);
}

void add_model_options(CLI::App& app, Arguments& args) {
  auto& encoder = args.job.base.model.encoder;
  const auto group = "Model";
  const auto add = [&](const char* name, auto& value, const char* text,
                       const CLI::Validator& valid) {
    app.add_option(name, value, text)->check(valid)->capture_default_str()->group(group);
  };
  add("--width", encoder.width, "width of the encoder", CLI::PositiveNumber);
  add("--heads", encoder.heads, "attention heads", CLI::PositiveNumber);
  add("--ffn", encoder.ffn, "width of the feed-forward layers", CLI::PositiveNumber);
  add("--layers", encoder.layers, "encoder layers", CLI::PositiveNumber);
  add("--dropout", encoder.dropout, "dropout of the activations", kFraction);
  add("--attention-dropout", encoder.attention_dropout,
      "dropout of the attention probabilities (slow path)", kFraction);
  add("--norm", encoder.norm, "normalisation of the encoder layers",
      CLI::IsMember({"batch", "batch_masked", "layer"}));
  add("--activation", encoder.activation, "activation", CLI::IsMember({"gelu", "relu"}));
  add("--beta-mode", encoder.beta_mode, "bn: re-centring strength",
      CLI::IsMember({"fixed", "scalar", "per_head"}));
  add("--beta", encoder.beta_init, "bn: (initial) value of the re-centring strength", CLI::Number);
  add("--eps", encoder.eps, "bn: variance floor", CLI::NonNegativeNumber);
  app.add_flag("--no-std", args.no_std, "bn: do not divide by the standard deviation")
      ->group(group);
  app.add_flag("--no-ragged-masks", args.no_ragged_masks, "let attention see the padded steps")
      ->group(group);
}

int run(Arguments args) {
  if (args.threads > 0) at::set_num_threads(args.threads);
  const auto dataset = load_dataset(args.data, args.data_dir);
  auto& job = args.job;
  job.base.model.encoder.use_std = !args.no_std;
  job.base.model.ragged_masks = !args.no_ragged_masks;
  if (job.folder.empty()) job.folder = std::filesystem::path("runs") / dataset.name;
  job.existing = args.resume      ? ExistingRun::kResume
                 : args.overwrite ? ExistingRun::kOverwrite
                                  : ExistingRun::kRefuse;
  return train_comparison(job, dataset) ? kSuccess : 128 + interrupt_signal();
}

}  // namespace

Command add_train(CLI::App& program) {
  auto args = std::make_shared<Arguments>();
  auto* app =
      program.add_subcommand("train", "train and compare attentions on a data set of time series");
  app->footer(kFooter);
  add_job_options(*app, *args);
  add_training_options(*app, args->job.base.training);
  add_model_options(*app, *args);
  return {app, [args] { return run(*args); }};
}

}  // namespace kktorch::cli
