// kktorch convex: convex attention on the user's own arrays, solved to a certificate.
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ops/convex_attention.h"
#include "ops/convex_gates.h"
#include "train/cli/command.h"
#include "train/common/error.h"
#include "train/common/files.h"
#include "train/common/torch_file.h"
#include "train/data/array_file.h"
#include "train/loop/interrupt.h"
#include "train/loop/metrics.h"
#include "train/loop/progress.h"
#include "train/loop/table.h"
#include "train/runs/run_config.h"

namespace kktorch::cli {
namespace {

namespace fs = std::filesystem;
using at::Tensor;

constexpr auto kFooter =
    R"(Files: .npy (numpy.save), or .pt (torch.save of a tensor, or of a dictionary
with "X" and "Y"). Features [N, n, d] float32 or float64; targets [N, c], or
class ids [N] for cross_entropy.

Examples:
  kktorch convex solve --features X.npy --targets Y.npy --rho 0.1
  kktorch convex solve --features X.npy --targets y.npy --loss cross_entropy --gates 64
  kktorch convex path --features X.npy --targets Y.npy --points 20 --lowest 0.01
  kktorch convex path --features X.npy --targets Y.npy --points 20 --lowest 0.01 --resume

Writes the problem (config.json), the certificates (result.json), the history of
each solve (metrics.csv) and the solutions (solutions.pt: a dictionary with Z
and, of gates, u1 and u2). Every finished point is kept in points/; --resume
continues a run that was stopped or killed, to the same numbers. Features in
.npy files are mapped, not copied.

Exit codes: 0 certified, 1 error, 2 wrong command line, 4 a tolerance was not
reached, 130 Ctrl-C (the best point is still written), 143 SIGTERM.)";

constexpr int kNotCertified = 4;

struct Arguments {
  fs::path features, targets, folder = "runs/convex";
  ConvexOptions options;
  double rho = 0.1, beta = 0, lowest = 0.01;
  int64_t points = 20, gates = 0, seed = 1;
  int threads = 0;
  bool path = false, resume = false;
};

/// rho = lowest^(k / (points - 1)), from 1 down; or the one rho, or beta.
std::vector<double> betas_of(const Arguments& args, double top) {
  if (!args.path) return {args.beta > 0 ? args.beta : args.rho * top};
  std::vector<double> betas;
  for (int64_t k = 0; k < args.points; ++k)
    betas.push_back(
        top * std::pow(args.lowest, static_cast<double>(k) / static_cast<double>(args.points - 1)));
  return betas;
}

int64_t active_groups(const Tensor& Z) { return Z.norm(2, {-1}).gt(0).sum().item<int64_t>(); }

int64_t active_tokens(const Tensor& Z) {
  return Z.norm(2, {-1}).gt(0).flatten(0, 1).any(0).sum().item<int64_t>();
}

nlohmann::ordered_json summary_of(const ConvexResult& r, double beta) {
  return {{"beta", beta},
          {"rho", r.beta_max > 0 ? beta / r.beta_max : 0},
          {"status", r.status},
          {"objective", r.F},
          {"bound", r.D},
          {"gap", r.gap},
          {"relative_gap", r.F != 0 ? r.gap / std::abs(r.F) : 0},
          {"iterations", r.iterations},
          {"reads", r.reads},
          {"screened", r.screened},
          {"active_groups", active_groups(r.Z)},
          {"active_tokens", active_tokens(r.Z)}};
}

/// A solution of a finished point.
struct Point {
  Tensor Z;
  nlohmann::ordered_json summary;
  double lip = 0;
};

/// The finished points in a run folder: points/<k>.pt, and points/<k>.json, which is written last.
class Points {
 public:
  explicit Points(fs::path folder) : folder_(std::move(folder)) {}

  bool has(int64_t k) const { return fs::exists(folder_ / fmt::format("{}.json", k)); }

  Point read(int64_t k) const {
    const auto saved = read_json(folder_ / fmt::format("{}.json", k));
    return {read_array(folder_ / fmt::format("{}.pt", k), "Z"), saved.at("summary"),
            saved.at("lip")};
  }

  void write(int64_t k, const Point& point) const {
    make_folder(folder_);
    write_file(folder_ / fmt::format("{}.pt", k), torch_save_bytes(point.Z));
    const nlohmann::ordered_json saved = {{"lip", point.lip}, {"summary", point.summary}};
    write_file(folder_ / fmt::format("{}.json", k), saved.dump(2) + '\n');
  }

 private:
  fs::path folder_;
};

class Run {
 public:
  explicit Run(const Arguments& args)
      : args_(args), sink_(args.folder), points_(args.folder / "points") {}

  int run() {
    X_ = read_array(args_.features, "X");
    Y_ = read_array(args_.targets, "Y");
    if (Y_.scalar_type() == at::kInt) Y_ = Y_.to(at::kLong);
    auto options = args_.options;
    std::optional<Gates> gates;
    if (args_.gates > 0) {
      gates = sample_gates(X_, args_.gates, args_.seed);
      options.gate = gates->pattern;
    }
    const double top = beta_max(X_, Y_, options);
    const auto betas = betas_of(args_, top);
    open_folder(config_of(betas, top));
    Table table({"rho", "objective", "relative gap", "active groups", "active tokens", "iterations",
                 "status"});
    auto results = nlohmann::ordered_json::array();
    std::vector<Tensor> solutions;
    bool certified = true;
    const InterruptGuard guard;
    for (size_t k = 0; k < betas.size() && !interrupt_signal(); ++k) {
      const auto point = point_of(static_cast<int64_t>(k), betas[k], options, betas[k] / top);
      options.Z0 = point.Z;
      if (point.lip > 0) options.lip = point.lip;
      solutions.push_back(point.Z);
      results.push_back(point.summary);
      const auto& s = results.back();
      const std::string status = s.at("status");
      certified &= status == "converged" || status == "null_solution";
      table.add({fmt::format("{:.4f}", betas[k] / top),
                 fmt::format("{:.6g}", s.at("objective").get<double>()),
                 fmt::format("{:.1e}", s.at("relative_gap").get<double>()),
                 std::to_string(s.at("active_groups").get<int64_t>()),
                 std::to_string(s.at("active_tokens").get<int64_t>()),
                 std::to_string(s.at("iterations").get<int64_t>()), status});
    }
    write(results, solutions, gates);
    fmt::print("{}\nrun folder: {}\n", table.text(), args_.folder.string());
    if (interrupt_signal()) return 128 + interrupt_signal();
    return certified ? static_cast<int>(kSuccess) : kNotCertified;
  }

 private:
  /// What the numbers depend on.
  nlohmann::ordered_json config_of(const std::vector<double>& betas, double top) const {
    return {{"problem",
             {{"features", args_.features.string()},
              {"targets", args_.targets.string()},
              {"samples", X_.size(0)},
              {"loss", args_.options.loss},
              {"penalty", args_.options.penalty},
              {"gates", args_.gates},
              {"seed", args_.seed},
              {"tol", args_.options.tol_rel},
              {"max_iter", args_.options.max_iter},
              {"beta_max", top},
              {"betas", betas}}}};
  }

  /// A new folder, or with --resume one that holds points of the same problem.
  void open_folder(const nlohmann::ordered_json& config) {
    const auto file = args_.folder / "config.json";
    if (fs::exists(file)) {
      if (!args_.resume)
        fail("convex: expected a new run folder, but got {} with a run; --resume continues it",
             args_.folder.string());
      check_same_config(file, config, {"problem"});
    }
    make_folder(args_.folder);
    write_file(file, config.dump(2) + '\n');
    int64_t finished = 0;
    while (points_.has(finished)) ++finished;
    sink_.keep_until(finished - 1, "point");
  }

  /// Solves a point, or reads it back.
  Point point_of(int64_t k, double beta, const ConvexOptions& options, double rho) {
    if (points_.has(k)) return points_.read(k);
    const auto r = solve_one(beta, options, rho);
    record(k, r, beta);
    const Point point = {r.Z, summary_of(r, beta), r.lip};
    if (r.status != "interrupted") points_.write(k, point);
    return point;
  }

  ConvexResult solve_one(double beta, ConvexOptions options, double rho) {
    const auto tolerance = options.tol_rel > 0 ? options.tol_rel : 1e-6;
    Progress progress(fmt::format("rho {:.4f}", rho), 100, 0);
    double first = 0;
    options.progress = [&](const csrc::Iterate& now) {
      if (first == 0) first = std::max(now.gap / std::abs(now.objective), tolerance);
      // Gaps fall geometrically: the share of the way on a logarithmic scale.
      const double left =
          std::log(std::max(now.gap / std::abs(now.objective), tolerance) / tolerance);
      const double way = std::max(1e-9, std::log(first / tolerance));
      const auto done = static_cast<int64_t>(100 * std::clamp(1 - left / way, 0., 1.));
      progress.update(done);
      if (now.iteration % 50 == 0)
        progress.note(
            done, fmt::format("it {} F {:.6g} gap {:.1e}", now.iteration, now.objective, now.gap));
      return interrupt_signal() == 0;
    };
    return solve(X_, Y_, beta, options);
  }

  void record(int64_t k, const ConvexResult& r, double beta) {
    const auto rows = r.history.accessor<double, 2>();
    for (int64_t i = 0; i < r.history.size(0); ++i)
      sink_.append({{"point", k},
                    {"beta", beta},
                    {"iteration", static_cast<int64_t>(rows[i][0])},
                    {"seconds", rows[i][1]},
                    {"objective", rows[i][2]},
                    {"gap", rows[i][3]}});
  }

  void write(const nlohmann::ordered_json& results, const std::vector<Tensor>& solutions,
             const std::optional<Gates>& gates) {
    std::map<std::string, Tensor> arrays = {{"Z", torch::stack(solutions)}};
    if (gates) arrays.insert({{"u1", gates->u1}, {"u2", gates->u2}});
    write_file(args_.folder / "solutions.pt", torch_save_bytes(arrays));
    const nlohmann::ordered_json result = {{"threads", at::get_num_threads()},
                                           {"solutions", results}};
    write_file(args_.folder / "result.json", result.dump(2) + '\n');
  }

  const Arguments& args_;
  MetricsSink sink_;
  Points points_;
  Tensor X_, Y_;
};

void add_problem(CLI::App& app, Arguments& args) {
  app.add_option("--features", args.features, "X, .npy or .pt")->required();
  app.add_option("--targets", args.targets, "Y, .npy or .pt")->required();
  app.add_option("--loss", args.options.loss, "half_squared, squared, logistic or cross_entropy")
      ->capture_default_str();
  app.add_option("--penalty", args.options.penalty, "group or nuclear")
      ->check(CLI::IsMember({"group", "nuclear"}))
      ->capture_default_str();
  app.add_option("--gates", args.gates, "number of sampled gates; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--seed", args.seed, "of the gates")->capture_default_str();
  app.add_option("--tol", args.options.tol_rel,
                 "relative gap (default: 1e-6 for float64, 1e-4 for float32)");
  app.add_option("--max-iter", args.options.max_iter, "iterations of a solve")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--time-limit", args.options.time_limit, "seconds of a solve, 0: none")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--out", args.folder, "run folder")->capture_default_str();
  app.add_option("--threads", args.threads, "CPU threads (default: LibTorch's choice)")
      ->check(CLI::PositiveNumber);
}

}  // namespace

Command add_convex(CLI::App& program) {
  auto solve_args = std::make_shared<Arguments>(), path_args = std::make_shared<Arguments>();
  path_args->path = true;
  auto* app = program.add_subcommand("convex", "convex attention, solved to a certified optimum");
  app->footer(kFooter);
  app->require_subcommand(1);
  auto* one = app->add_subcommand("solve", "one penalty");
  add_problem(*one, *solve_args);
  one->add_option("--rho", solve_args->rho, "penalty as a share of the largest useful one")
      ->capture_default_str();
  one->add_option("--beta", solve_args->beta, "the penalty itself, in place of --rho");
  auto* path = app->add_subcommand("path", "penalties from the largest useful one down");
  add_problem(*path, *path_args);
  path->add_option("--points", path_args->points, "number of penalties")
      ->check(CLI::Range(2, 10000))
      ->capture_default_str();
  path->add_flag("--resume", path_args->resume, "continue the run in --out");
  path->add_option("--lowest", path_args->lowest, "the last rho")
      ->check(CLI::Range(1e-9, 1.))
      ->capture_default_str();
  return {app, [=] {
            const auto& args = path->parsed() ? *path_args : *solve_args;
            if (args.threads > 0) at::set_num_threads(args.threads);
            return Run(args).run();
          }};
}

}  // namespace kktorch::cli
