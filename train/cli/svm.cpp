// kktorch svm: attention SVMs of data in a file.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "ops/svm_solve.h"
#include "train/cli/command.h"
#include "train/common/error.h"
#include "train/common/files.h"
#include "train/data/array_file.h"
#include "train/loop/interrupt.h"
#include "train/loop/table.h"

namespace kktorch::cli {
namespace {

using at::Tensor;
using Arrays = std::map<std::string, Tensor>;

constexpr auto kFooter = R"(Examples:
  kktorch svm solve --data problem.npz
  kktorch svm solve --data problem.npz --norm nuc --alpha opt --tol 1e-8 --out solution.pt

The file holds X [n, T, d] and Z [n, dz], or x [N, dx], z [Q, dz], row_ptr [Q + 1]
and perhaps tok [nnz]. The selected tokens are, by --alpha,
  file     the array alpha [Q], or sel [nnz] of bool with several tokens per query
  opt      those of the largest Y v.x, from v [dx] and labels Y [Q] of +1 or -1
  argmax   those of the largest logit x W z, from W [dx, dz]
A solution file is the tuple (w [dx, dz], lam [nnz], nu [nnz]) for torch.load; w is
empty if infeasible. Exit code 0: solved (optimal, or no pair at all); 1: infeasible,
not certified, or an error.)";

struct Arguments {
  std::filesystem::path data, out;
  std::string norm = "fro", alpha = "file", method = "auto";
  double tol = 0;  // 0: the default of the norm
  double time_limit = std::numeric_limits<double>::infinity();
  uint64_t seed = 0;
  bool json = false, drop_zero_pairs = false;
};

/// The arrays of one file, with errors that name it.
class Data {
 public:
  explicit Data(const std::filesystem::path& file)
      : file_(file.string()), arrays_(read_arrays(file)) {}

  bool has(const std::string& name) const { return arrays_.contains(name); }

  /// sizes: -1 for any.
  Tensor get(const std::string& name, const std::vector<int64_t>& sizes,
             const std::string& shape) const {
    const auto found = arrays_.find(name);
    if (found == arrays_.end()) {
      std::string names;
      for (const auto& [known, array] : arrays_) names += (names.empty() ? "" : ", ") + known;
      fail("{}: expected an array {} {}, but got {}", file_, name, shape,
           names.empty() ? "no array" : names);
    }
    const auto& array = found->second;
    bool matches = array.dim() == static_cast<int64_t>(sizes.size());
    for (size_t i = 0; matches && i < sizes.size(); ++i)
      matches = sizes[i] < 0 || array.size(static_cast<int64_t>(i)) == sizes[i];
    if (!matches)
      fail("{}: expected {} of shape {}, but got [{}]", file_, name, shape,
           fmt::join(array.sizes(), ", "));
    return array;
  }

  Tensor numbers(const std::string& name, const std::vector<int64_t>& sizes,
                 const std::string& shape) const {
    return get(name, sizes, shape).to(at::kDouble);
  }

  TokenSets sets() const {
    if (has("X")) {
      const auto X = numbers("X", {-1, -1, -1}, "[n, T, d]");
      return TokenSets::cross(X, numbers("Z", {X.size(0), -1}, fmt::format("[{}, dz]", X.size(0))));
    }
    const auto x = numbers("x", {-1, -1}, "[N, dx]"), z = numbers("z", {-1, -1}, "[Q, dz]");
    const auto row_ptr = get("row_ptr", {z.size(0) + 1}, fmt::format("[{}]", z.size(0) + 1));
    TokenSets sets{x, z, row_ptr.to(at::kLong), {}};
    if (has("tok")) sets.tok = get("tok", {-1}, "[nnz]").to(at::kLong);
    return sets;
  }

  const std::string& file() const { return file_; }

 private:
  std::string file_;
  Arrays arrays_;
};

/// Position of the largest value [nnz] in every set; ties: the first.
Tensor argmax_of_sets(const TokenSets& sets, const Tensor& values) {
  const auto row_ptr = sets.row_ptr.contiguous(), flat = values.contiguous();
  const int64_t* begin = row_ptr.const_data_ptr<int64_t>();
  const double* value = flat.const_data_ptr<double>();
  auto alpha = at::zeros({row_ptr.size(0) - 1}, at::kLong);
  for (int64_t q = 0; q < alpha.size(0); ++q)
    alpha.mutable_data_ptr<int64_t>()[q] =
        std::max_element(value + begin[q], value + begin[q + 1]) - (value + begin[q]);
  return alpha;
}

Tensor selection_of(const Data& data, const TokenSets& sets, const std::string& how) {
  const int64_t Q = sets.z.size(0), dx = sets.x.size(1), dz = sets.z.size(1);
  if (how == "file" && data.has("sel")) return data.get("sel", {-1}, "[nnz]").to(at::kBool);
  if (how == "file") return data.get("alpha", {Q}, fmt::format("[{}]", Q)).to(at::kLong);
  const auto tokens = sets.tok ? sets.x.index_select(0, *sets.tok) : sets.x;
  const auto query = at::arange(Q).repeat_interleave(sets.row_ptr.diff());
  TORCH_CHECK(query.size(0) == tokens.size(0), data.file(),
              ": expected row_ptr from 0 to nnz = ", tokens.size(0), ", but got ", query.size(0),
              " entries");
  if (how == "argmax") {
    const auto W = data.numbers("W", {dx, dz}, fmt::format("[{}, {}]", dx, dz));
    const auto y = at::matmul(sets.z, W.t()).index_select(0, query);
    return argmax_of_sets(sets, (tokens * y).sum(1));
  }
  const auto labels = data.numbers("Y", {Q}, fmt::format("[{}]", Q));
  const auto wrong = (labels.abs() != 1).nonzero();
  if (wrong.numel() > 0) {
    const auto first = wrong[0].item<int64_t>();
    fail("{}: expected labels Y of +1 or -1, but got {} at {}", data.file(),
         labels[first].item<double>(), first);
  }
  const auto v = data.numbers("v", {dx}, fmt::format("[{}]", dx));
  return argmax_of_sets(sets, at::matmul(tokens, v) * labels.index_select(0, query));
}

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

/// A tuple, because torch.load takes a dictionary of LibTorch for code that it must not run.
void write_solution(const std::filesystem::path& file, const SvmSolution& s) {
  const auto w = s.w.defined() ? s.w : at::empty({0}, at::kDouble);
  const auto bytes = torch::pickle_save(c10::ivalue::Tuple::create({w, s.lam, s.nu}));
  write_file(file, {bytes.data(), bytes.size()});
}

int run_solve(const Arguments& args) {
  const Data data(args.data);
  const auto sets = data.sets();
  const auto selection = selection_of(data, sets, args.alpha);
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

}  // namespace

Command add_svm(CLI::App& program) {
  auto args = std::make_shared<Arguments>();
  auto* app = program.add_subcommand("svm", "attention SVMs with certificates");
  app->require_subcommand(1);
  auto* solve = app->add_subcommand("solve", "solve the attention SVM of data in a file");
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
  return {app, [args] { return run_solve(*args); }};
}

}  // namespace kktorch::cli
