// kktorch export: a trained model as a file that needs no training code.
#include <fmt/format.h>

#include <memory>
#include <string>

#include "train/cli/command.h"
#include "train/runs/run.h"

namespace kktorch::cli {
namespace {

constexpr auto kFooter = R"(Example:
  kktorch export --run runs/JapaneseVowels/bn-seed1 --format torchscript --out model.ts
then, in Python:
  import torch
  torch.ops.load_library("build/lib/libkktorch.so")
  logits = torch.jit.load("model.ts")(x, padding_mask)
with padding_mask [B, L] True behind the end of a sequence and x the raw series
[B, L, C] or the tokens [B, L] int64; a model of images takes x [B, C, height,
width] alone)";

struct Arguments {
  std::filesystem::path run, out;
  std::string format = "torchscript";
};

int run(const Arguments& args) {
  const auto file = args.out.empty() ? args.run / "model.ts" : args.out;
  save_torchscript(load_run(args.run).model, file);
  fmt::print("{}\n", file.string());
  return kSuccess;
}

}  // namespace

Command add_export(CLI::App& program) {
  auto args = std::make_shared<Arguments>();
  auto* app = program.add_subcommand("export", "save a trained model as TorchScript");
  app->footer(kFooter);
  app->add_option("--run", args->run, "folder of one run")->required();
  app->add_option("--format", args->format, "file format")
      ->check(CLI::IsMember({"torchscript"}))
      ->capture_default_str();
  app->add_option("--out", args->out, "file to write (default: model.ts in the run folder)");
  return {app, [args] { return run(*args); }};
}

}  // namespace kktorch::cli
