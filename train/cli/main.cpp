// kktorch, the program: train, predict, export, reproduce, svm, convex, info.
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <vector>

#include "ops/info.h"
#include "train/cli/command.h"
#include "train/common/error.h"
#include "train/loop/trainer.h"

namespace {

using namespace kktorch::cli;

int report(const char* message, ExitCode code) {
  fmt::print(stderr, "kktorch: {}\n", message);
  return code;
}

int run_chosen(const std::vector<Command>& commands) {
  const auto chosen =
      std::find_if(commands.begin(), commands.end(), [](const auto& c) { return c.app->parsed(); });
  try {
    return chosen->run();
  } catch (const kktorch::DivergedError& error) {
    return report(error.what(), kDiverged);
  } catch (const c10::Error& error) {  // its what() holds a backtrace
    return report(error.what_without_backtrace(), kFailure);
  } catch (const std::exception& error) {
    return report(error.what(), kFailure);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App program("Attention layers with optimality certificates: training, prediction, export.",
                   "kktorch");
  program.set_version_flag("--version", "kktorch " + kktorch::build_info().version);
  program.require_subcommand(1);
  program.footer("kktorch <command> --help shows the options and examples of a command.");
  const std::vector commands = {add_train(program),     add_predict(program), add_export(program),
                                add_reproduce(program), add_svm(program),     add_convex(program),
                                add_info(program)};
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? kSuccess : kUsage;
  }
  return run_chosen(commands);
}
