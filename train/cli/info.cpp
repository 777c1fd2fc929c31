// kktorch info: versions, machine, and the path that each op takes.
#include "ops/info.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "csrc/common/cpu_tier.h"
#include "train/cli/command.h"
#include "train/loop/table.h"

namespace kktorch::cli {
namespace {

int run() {
  const auto build = build_info();
  fmt::print("kktorch   {}\nLibTorch  {}\ncompiler  {}\n", build.version, build.torch_version,
             build.compiler);
  fmt::print("CPU       {} kernels, {} threads\n", csrc::cpu_tier_name(), at::get_num_threads());
  fmt::print("CUDA      kernels {}, device {}\n\n", build.cuda_kernels ? "built" : "not built",
             at::hasCUDA() ? "available" : "not available");
  Table table({"op", "path on the CPU", "path on CUDA"});
  for (const auto& path : op_paths()) table.add({path.op, path.cpu, path.cuda});
  fmt::print("{}", table.text());
  return kSuccess;
}

}  // namespace

Command add_info(CLI::App& program) {
  return {
      program.add_subcommand("info", "versions, CPU tier, CUDA, and the path that each op takes"),
      run};
}

}  // namespace kktorch::cli
