#pragma once
// The subcommands of the program, one file each: its options, and what to do with them.
#include <CLI/CLI.hpp>
#include <functional>

namespace kktorch::cli {

/// Exit codes, besides 128 + signal of a run that a signal stopped.
enum ExitCode : int { kSuccess = 0, kFailure = 1, kUsage = 2, kDiverged = 3 };

struct Command {
  CLI::App* app;
  std::function<int()> run;  ///< after parsing; returns the exit code
};

Command add_train(CLI::App& program);
Command add_predict(CLI::App& program);
Command add_convex(CLI::App& program);
Command add_export(CLI::App& program);
Command add_reproduce(CLI::App& program);
Command add_svm(CLI::App& program);
Command add_info(CLI::App& program);

}  // namespace kktorch::cli
