// kktorch reproduce: runs an experiment of a paper.
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <memory>
#include <string>

#include "train/cli/command.h"
#include "train/experiments/registry.h"
#include "train/experiments/reproduction.h"
#include "train/loop/interrupt.h"

namespace kktorch::cli {
namespace {

constexpr auto kFooter = R"(Examples:
  kktorch reproduce --list
      the experiments there are, and the time that each preset takes on two cores
  kktorch reproduce primal-dual --experiment svr
  kktorch reproduce primal-dual --experiment retrieval --preset full --resume
      continues after Ctrl-C; a finished experiment is read back
  kktorch reproduce shallow --experiment e7 --set lags=[1,8,64] --set position=unit
      settings are printed at the start of every run

Every table says what it was measured on, and what it does not show.

Exit codes: 0 done, 1 error, 2 wrong command line, 3 a number is not finite,
130 Ctrl-C, 143 SIGTERM.)";

struct Arguments {
  std::string paper, experiment;
  ReproductionOptions run;
  int threads = 0;
  bool list = false;
};

int run(Arguments args) {
  if (args.list) {
    fmt::print("{}", experiments_text());
    return kSuccess;
  }
  if (args.threads > 0) at::set_num_threads(args.threads);
  const auto& experiment = find_experiment(args.paper, args.experiment);
  if (args.run.folder.empty())
    args.run.folder =
        std::filesystem::path("runs") / args.paper /
        fmt::format("{}-{}", args.experiment, kPresetNames[static_cast<int>(args.run.preset)]);
  return reproduce(experiment, args.run) ? kSuccess : 128 + interrupt_signal();
}

}  // namespace

Command add_reproduce(CLI::App& program) {
  auto args = std::make_shared<Arguments>();
  auto* app = program.add_subcommand("reproduce", "run an experiment of a paper");
  app->footer(kFooter);
  app->add_flag("--list", args->list, "print the experiments and leave");
  app->add_option("paper", args->paper, "the paper, e.g. primal-dual");
  app->add_option("--experiment", args->experiment, "its experiment, e.g. svr");
  app->add_option("--preset", args->run.preset, "how much is run: smoke, quick (or cpu) or full")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Preset>{{"smoke", Preset::kSmoke},
                                                                        {"quick", Preset::kQuick},
                                                                        {"cpu", Preset::kQuick},
                                                                        {"full", Preset::kFull}}))
      ->default_str("quick");
  app->add_option("--out", args->run.folder,
                  "run folder (default: runs/<paper>/<experiment>-<preset>)");
  app->add_option("--seed", args->run.seed, "the first seed")->capture_default_str();
  app->add_flag("--resume", args->run.resume, "continue, or read back, the run in the run folder");
  app->add_option("--set", args->run.changes,
                  "a setting other than the preset's, NAME=VALUE; may be repeated")
      ->allow_extra_args(false);
  app->add_option("--invariants", args->run.invariants,
                  "what a violated bound does (training dynamics): off, warn or error")
      ->transform(CLI::CheckedTransformer(std::map<std::string, dynamics::InvariantMode>{
          {"off", dynamics::InvariantMode::kOff},
          {"warn", dynamics::InvariantMode::kWarn},
          {"error", dynamics::InvariantMode::kError}}))
      ->default_str("warn");
  app->add_option("--threads", args->threads, "CPU threads (default: LibTorch's choice)")
      ->check(CLI::PositiveNumber);
  return {app, [args] { return run(*args); }};
}

}  // namespace kktorch::cli
