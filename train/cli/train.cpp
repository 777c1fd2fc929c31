// kktorch train: compares attentions on a data set.
#include <ATen/Parallel.h>

#include <memory>
#include <string>
#include <vector>

#include "train/cli/command.h"
#include "train/cli/config_options.h"
#include "train/common/error.h"
#include "train/data/datasets.h"
#include "train/loop/interrupt.h"
#include "train/runs/comparison.h"

namespace kktorch::cli {
namespace {

constexpr auto kFooter =
    R"(Data: the .ts sets of the installed packages aeon and sktime and of your own
folders (time series), digits from scikit-learn (images), ListOps and
ListOps-small (token sequences, generated). The kind of the data decides the
model and the defaults above.

Attentions: softmax, bn, sh, bnsh, linear, linear_bn, linear_sh, linear_bnsh;
with -nostd behind, as in bn-nostd: not divided by the standard deviation.

Examples:
  kktorch train
      the main job: softmax attention and Attention-BN on JapaneseVowels, 3 seeds each
  kktorch train --data BasicMotions --seeds 5 --out runs/motions
  kktorch train --data ./MyData/My_TRAIN.ts --attention bn --beta-mode per_head
  kktorch train --data digits --attention softmax,bn,bn-nostd
  kktorch train --data ListOps-small --steps 1000
  kktorch train --resume
      continues after Ctrl-C, to the same bits on one thread

Training: AdamW with linear warm-up, then decay to zero; gradients are clipped.
A part of the training data, stratified by class, is held out for validation.
Learning rate and weight decay were tried there on JapaneseVowels (54 cases,
3 seeds, softmax): 3e-4 and 1e-3, and 5e-4 and 5e-2, differ by less than one
case; a learning rate of 3e-3 triples the validation loss.
Test data choose nothing. The column "best on test" takes the epoch from them:
it is optimistic, and printed for comparison with published numbers only.

Exit codes: 0 done, 1 error, 2 wrong command line, 3 loss not finite,
130 Ctrl-C, 143 SIGTERM.)";

struct Arguments {
  std::string data = "JapaneseVowels", model;
  DatasetOptions data_options;
  std::vector<std::string> attentions = {"softmax", "bn"};
  int64_t seeds = 3;
  std::filesystem::path folder;
  int threads = 0;
  bool resume = false, overwrite = false;
  ConfigChanges changes;
};

void add_data_options(CLI::App& app, Arguments& args) {
  app.add_option("--data", args.data, "name of a data set, folder, or file <NAME>_TRAIN.ts")
      ->capture_default_str();
  app.add_option("--data-dir", args.data_options.data_dir,
                 "where to look for names first, before $KKTORCH_DATA and the packages");
  app.add_option("--train-size", args.data_options.train_size,
                 "training examples of generated data (default: what the name stands for)")
      ->check(CLI::PositiveNumber);
  app.add_option("--test-size", args.data_options.test_size,
                 "test and validation examples of generated data, of each")
      ->check(CLI::PositiveNumber);
}

void add_job_options(CLI::App& app, Arguments& args) {
  app.add_option("--model", args.model, "model (default: the one for the kind of the data)")
      ->check(CLI::IsMember({"timeseries", "vit", "tokens"}));
  app.add_option("--attention", args.attentions,
                 "attentions to compare; the first one is the reference")
      ->delimiter(',')
      ->check(CLI::IsMember(method_names()))
      ->capture_default_str();
  app.add_option("--seeds", args.seeds, "runs per attention, with seeds 1 ... N")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--out", args.folder, "run folder (default: runs/<data>)");
  auto* resume = app.add_flag("--resume", args.resume,
                              "continue the runs in the run folder, or start if there are none");
  app.add_flag("--overwrite", args.overwrite, "replace the runs in the run folder")
      ->excludes(resume);
  app.add_option("--threads", args.threads, "CPU threads (default: LibTorch's choice)")
      ->check(CLI::PositiveNumber);
}

ComparisonOptions job_of(const Arguments& args, const Dataset& dataset) {
  const auto* model = model_name(dataset.kind);
  if (!args.model.empty() && args.model != model)
    fail("train: expected --model {} for {}, but got {}", model, dataset.name, args.model);
  ComparisonOptions job{.methods = {},
                        .seeds = args.seeds,
                        .base = preset(dataset.kind),
                        .folder = args.folder,
                        .existing = args.resume      ? ExistingRun::kResume
                                    : args.overwrite ? ExistingRun::kOverwrite
                                                     : ExistingRun::kRefuse};
  for (const auto& change : args.changes) change(job.base);
  for (const auto& name : args.attentions)
    job.methods.push_back(method_named(name, encoder_of(job.base.model)));
  if (job.folder.empty()) job.folder = std::filesystem::path("runs") / dataset.name;
  return job;
}

int run(const Arguments& args) {
  if (args.threads > 0) at::set_num_threads(args.threads);
  const auto dataset = load_dataset(args.data, args.data_options);
  return train_comparison(job_of(args, dataset), dataset) ? kSuccess : 128 + interrupt_signal();
}

}  // namespace

Command add_train(CLI::App& program) {
  auto args = std::make_shared<Arguments>();
  auto* app = program.add_subcommand("train", "train and compare attentions on a data set");
  app->footer(kFooter);
  add_data_options(*app, *args);
  add_job_options(*app, *args);
  add_config_options(*app, args->changes);
  return {app, [args] { return run(*args); }};
}

}  // namespace kktorch::cli
