// kktorch svm solve, and the command of which it is a part.
#include <fmt/format.h>
#include <torch/torch.h>

#include <chrono>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "ops/svm_solve.h"
#include "train/cli/command.h"
#include "train/cli/svm_data.h"
#include "train/cli/svm_track.h"
#include "train/common/error.h"
#include "train/common/files.h"
#include "train/common/torch_file.h"
#include "train/loop/interrupt.h"
#include "train/loop/table.h"

namespace kktorch::cli {
namespace {

using at::Tensor;

constexpr auto kFooter = R"(Examples:
  kktorch svm solve --data problem.npz
  kktorch svm solve --data problem.npz --norm nuc --alpha opt --tol 1e-8 --out solution.pt

The file holds X [n, T, d] and Z [n, dz], or x [N, dx], z [Q, dz], row_ptr [Q + 1]
and perhaps tok [nnz]. The selected tokens are, by --alpha,
  file     the array alpha [Q], or sel [nnz] of bool with several tokens per query
  opt      those of the largest Y v.x, from v [dx] and labels Y [Q] of +1 or -1
  argmax   those of the largest logit x W z, from W [dx, dz]
A solution file is a dictionary of w [dx, dz], lam [nnz] and nu [nnz] for torch.load;
w is empty if infeasible. Exit code 0: solved (optimal, or no pair at all); 1: infeasible,
not certified, or an error.)";

struct Arguments {
  std::filesystem::path data, out;
  std::string norm = "fro", alpha = "file", method = "auto";
  double tol = 0;  // 0: the default of the norm
  double time_limit = std::numeric_limits<double>::infinity();
  uint64_t seed = 0;
  bool json = false, drop_zero_pairs = false;
};

csrc::SvmSettings settings_of(const Arguments& args) {
  csrc::SvmSettings settings;
  settings.norm = args.norm == "nuc" ? csrc::SvmNorm::kNuclear : csrc::SvmNorm::kFrobenius;
  if (args.method == "oracle") settings.method = csrc::SvmMethod::kOracle;
  if (args.method == "dcd") settings.method = csrc::SvmMethod::kDcd;
  if (args.method == "pdhg") settings.method = csrc::SvmMethod::kPdhg;
  if (args.tol != 0) settings.tol = args.tol;
  settings.time_limit = args.time_limit;
  settings.seed = args.seed;
  settings.drop_zero_pairs = args.drop_zero_pairs;
  settings.progress = [shown = 0.0](const csrc::SvmProgress& at) mutable {
    if (at.seconds - shown >= 1) {
      shown = at.seconds;
      fmt::print(stderr, "{:6.1f} s  {:<11} {:>7}  gap {:.2e}\n", at.seconds, at.phase,
                 at.iteration, at.gap);
    }
    return interrupt_signal() == 0;
  };
  return settings;
}

nlohmann::ordered_json to_json(const SvmSolution& s, const Arguments& args, double seconds) {
  const auto& c = s.certificate;
  return {{"status", csrc::svm_status_name(s.status)},
          {"norm", args.norm == "nuc" ? "nuclear" : "frobenius"},
          {"lower", c.lower},
          {"upper", c.upper},
          {"gap", c.gap},
          {"kappa", c.kappa},
          {"norm_of_w", c.norm},
          {"rank", c.rank},
          {"mu", c.mu},
          {"rank_certified", args.norm == "nuc" && c.rank_certified()},
          {"support_resolved", s.support_resolved},
          {"support_pairs", (s.lam > 0).sum().item<int64_t>()},
          {"zero_pairs", s.zero_pairs},
          {"method", s.method},
          {"reason", s.reason},
          {"epochs", s.epochs},
          {"iterations", s.iterations},
          {"seconds", seconds}};
}

std::string as_text(const nlohmann::ordered_json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return fmt::format("{:.8g}", value.get<double>());
  return value.dump();
}

void write_solution(const std::filesystem::path& file, const SvmSolution& s) {
  const std::map<std::string, at::Tensor> arrays = {
      {"w", s.w.defined() ? s.w : at::empty({0}, at::kDouble)}, {"lam", s.lam}, {"nu", s.nu}};
  write_file(file, torch_save_bytes(arrays));
}

int run_solve(const Arguments& args) {
  const SvmData data(args.data);
  const auto sets = data.sets();
  const auto selection = data.selection(sets, args.alpha);
  const InterruptGuard guard;
  const auto start = std::chrono::steady_clock::now();
  const auto solution = [&] {
    try {
      return att_svm(sets, selection, settings_of(args));
    } catch (const c10::Error& error) {
      fail("{}: {}", args.data.string(), error.what_without_backtrace());
    }
  }();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const auto summary = to_json(solution, args, seconds.count());
  if (args.json) {
    fmt::print("{}\n", summary.dump(2));
  } else {
    Table table({"quantity", "value"});
    for (const auto& [name, value] : summary.items()) table.add({name, as_text(value)});
    fmt::print("{}", table.text());
  }
  if (!args.out.empty()) write_solution(args.out, solution);
  if (const int signal = interrupt_signal()) return 128 + signal;
  const bool solved =
      solution.status == csrc::SvmStatus::kOptimal || solution.status == csrc::SvmStatus::kTrivial;
  return solved ? kSuccess : kFailure;
}

Command add_solve(CLI::App& svm) {
  auto args = std::make_shared<Arguments>();
  auto* solve = svm.add_subcommand("solve", "solve the attention SVM of data in a file");
  solve->footer(kFooter);
  solve->add_option("--data", args->data, ".npz or .pt file of named arrays")->required();
  solve->add_option("--norm", args->norm, "fro or nuc")
      ->check(CLI::IsMember({"fro", "nuc"}))
      ->capture_default_str();
  solve->add_option("--alpha", args->alpha, "where the selected tokens come from")
      ->check(CLI::IsMember({"file", "opt", "argmax"}))
      ->capture_default_str();
  solve->add_option("--method", args->method, "solver")
      ->check(CLI::IsMember({"auto", "oracle", "dcd", "pdhg"}))
      ->capture_default_str();
  solve->add_option("--tol", args->tol, "certified gap; default 1e-10, nuc 1e-6")
      ->check(CLI::PositiveNumber);
  solve->add_option("--time-limit", args->time_limit, "seconds")->check(CLI::PositiveNumber);
  solve->add_option("--seed", args->seed, "of the order of coordinates")->capture_default_str();
  solve->add_flag("--drop-zero-pairs", args->drop_zero_pairs,
                  "leave out pairs of equal tokens instead of reporting infeasible");
  solve->add_flag("--json", args->json, "print JSON instead of a table");
  solve->add_option("--out", args->out, ".pt file for the solution");
  return {solve, [args] { return run_solve(*args); }};
}

}  // namespace

Command add_svm(CLI::App& program) {
  auto* app = program.add_subcommand("svm", "attention SVMs with certificates");
  app->require_subcommand(1);
  const auto solve = add_solve(*app);
  const auto track = add_svm_track(*app);
  return {app, [solve, track] { return solve.app->parsed() ? solve.run() : track.run(); }};
}

}  // namespace kktorch::cli
