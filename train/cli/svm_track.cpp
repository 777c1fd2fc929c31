#include "train/cli/svm_track.h"

#include <fmt/format.h>
#include <torch/torch.h>

#include <memory>

#include "train/cli/svm_data.h"
#include "train/common/error.h"
#include "train/experiments/attention_svm/theory_data.h"
#include "train/experiments/attention_svm/track.h"
#include "train/experiments/reproduction.h"
#include "train/loop/interrupt.h"

namespace kktorch::cli {
namespace {

using at::Tensor;
using attention_svm::TrackData;
using attention_svm::TrackOptions;

constexpr auto kFooter = R"(Examples:
  kktorch svm track --data problem.npz --stop-cosine 0.99
  kktorch svm track --data problem.npz --columns 8 --iterations 5000 --out runs/factors
  kktorch svm track --data problem.npz --resume
      continues after Ctrl-C, to the same numbers
  python -m kktorch.report runs/svm-track/problem
      a page with the bracket and the cosines

The model: logits x W z, softmax over the tokens of a query, a fixed head of the
attention output, and the mean loss of label times head; trained by normalised
gradient descent on W, or on K and Q with W = K Q^T.

The file holds X [n, T, d] and Z [n, dz], or x [N, dx], z [Q, dz], row_ptr [Q + 1]
and perhaps tok [nnz]; labels Y [Q] of +1 or -1; and perhaps
  v        the head: v.o [dx], or for relu the matrix [units, dx]; else drawn
  alpha    [Q], or sel [nnz] of bool: the selection with --select file
  W        [dx, dz], or K [dx, m] and Q [dz, m]: where --start file begins

Every iteration has a row in <out>/run/metrics.csv and metrics.jsonl: loss, margins,
bracket, certified cosine, softmax, norms; cosines with the solved SVMs once the
selection has stayed. <out>/run/checkpoint.pt holds the weights, for torch.load.

Exit codes: 0 done, 1 error, 2 wrong command line, 3 risk not finite,
130 Ctrl-C, 143 SIGTERM.)";

struct Arguments {
  std::filesystem::path data, folder;
  std::string start = "random";
  uint64_t seed = 1;
  int threads = 0;
  bool resume = false, no_nuclear = false;
  TrackOptions track;
};

std::string sizes_text(int64_t rows, int64_t columns) {
  return fmt::format("[{}, {}]", rows, columns);
}

/// The head's weights, of norm 1 if they are drawn.
Tensor head_of(const SvmData& data, const std::string& head, int64_t dx, uint64_t seed) {
  const bool relu = head == "relu";
  if (data.has("v"))
    return relu ? data.numbers("v", {-1, dx}, fmt::format("[units, {}]", dx))
                : data.numbers("v", {dx}, fmt::format("[{}]", dx));
  const auto shape = relu ? std::vector<int64_t>{dx, dx} : std::vector<int64_t>{dx};
  const auto drawn = at::tensor(attention_svm::draw_normal(seed, shape, 1), at::kDouble);
  return (drawn / drawn.norm()).view(shape);
}

/// W, or K and Q one after the other.
Tensor weights_of(const SvmData& data, const Arguments& args, int64_t dx, int64_t dz) {
  const int64_t m = args.track.descent.m;
  if (args.start == "file") {
    if (m == 0) return data.numbers("W", {dx, dz}, sizes_text(dx, dz)).flatten();
    return at::cat({data.numbers("K", {dx, m}, sizes_text(dx, m)).flatten(),
                    data.numbers("Q", {dz, m}, sizes_text(dz, m)).flatten()});
  }
  if (args.start == "zero") {
    if (m > 0) fail("svm track: expected --start random or file with --columns, but got zero");
    return at::zeros({dx * dz}, at::kDouble);
  }
  const auto uniform = [&](int64_t rows, int64_t columns, uint64_t seed) {
    return at::tensor(attention_svm::draw_weights(seed, rows * columns, rows), at::kDouble);
  };
  if (m == 0) return uniform(dz, dx, args.seed);
  return at::cat({uniform(dx, m, args.seed), uniform(dz, m, args.seed + 1)});
}

TrackData data_of(const SvmData& data, const Arguments& args) {
  auto sets = data.sets();
  for (auto* t : {&sets.x, &sets.z, &sets.row_ptr}) *t = t->contiguous();
  if (sets.tok) sets.tok = sets.tok->contiguous();
  const int64_t dx = sets.x.size(1), dz = sets.z.size(1);
  TrackData result{.file = args.data,
                   .sets = sets,
                   .labels = data.labels(sets.z.size(0)).contiguous(),
                   .v = head_of(data, args.track.head, dx, args.seed).contiguous(),
                   .weights = weights_of(data, args, dx, dz),
                   .selection = {}};
  if (args.track.select == "file") result.selection = data.selection(sets, "file");
  return result;
}

int run(Arguments args) {
  if (args.threads > 0) at::set_num_threads(args.threads);
  args.track.nuclear = !args.no_nuclear;
  if (args.folder.empty()) args.folder = std::filesystem::path("runs/svm-track") / args.data.stem();
  const SvmData file(args.data);
  const auto experiment = [&] {
    try {
      return attention_svm::track(args.track, data_of(file, args));
    } catch (const c10::Error& error) {
      fail("{}: {}", args.data.string(), error.what_without_backtrace());
    }
  }();
  const ReproductionOptions options{
      .seed = args.seed,
      .folder = args.folder,
      .resume = args.resume,
      .command = fmt::format("kktorch svm track --data {}", args.data.string())};
  return reproduce(experiment, options) ? kSuccess : 128 + interrupt_signal();
}

void add_model_options(CLI::App& app, Arguments& args) {
  auto& track = args.track;
  app.add_option("--columns", track.descent.m, "columns m of K and Q; 0: W itself")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--head", track.head, "linear, relu or quad")
      ->check(CLI::IsMember({"linear", "relu", "quad"}))
      ->capture_default_str();
  app.add_option("--lbd", track.lbd, "of the head quad: v.o - lbd |o|^2")->capture_default_str();
  app.add_option("--loss", track.loss, "logistic, exponential or linear")
      ->check(CLI::IsMember({"logistic", "exponential", "linear"}))
      ->capture_default_str();
  app.add_option("--start", args.start, "initial weights: random, zero or file")
      ->check(CLI::IsMember({"random", "zero", "file"}))
      ->capture_default_str();
}

void add_run_options(CLI::App& app, Arguments& args) {
  auto& track = args.track;
  app.add_option("--iterations", track.iterations, "updates")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--lr", track.descent.lr, "length of a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--ngd-eps", track.descent.eps, "added to the length of the gradient")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--select", track.select,
                 "tokens that the tracker measures: argmax of the logits, opt of the scores, file")
      ->check(CLI::IsMember({"argmax", "opt", "file"}))
      ->capture_default_str();
  app.add_option("--stop-cosine", track.stop_cosine, "end at a certified cosine above it")
      ->check(CLI::Range(0.0, 1.0));
  app.add_flag("--no-nuclear", args.no_nuclear, "leave out the bracket of the nuclear norm");
  app.add_option("--solve-after", track.solve_after,
                 "iterations with one selection before its SVMs are solved; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--solve-seconds", track.solve_seconds, "time limit of each of these solves")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seed", args.seed, "of drawn weights and heads")->capture_default_str();
  app.add_option("--out", args.folder, "run folder (default: runs/svm-track/<file>)");
  app.add_option("--threads", args.threads, "CPU threads (default: LibTorch's choice)")
      ->check(CLI::PositiveNumber);
  app.add_flag("--resume", args.resume, "continue, or read back, the run in the run folder");
}

}  // namespace

Command add_svm_track(CLI::App& svm) {
  auto args = std::make_shared<Arguments>();
  auto* app = svm.add_subcommand("track", "train a layer of attention, with the margin tracker");
  app->footer(kFooter);
  app->add_option("--data", args->data, ".npz or .pt file of named arrays")->required();
  add_model_options(*app, *args);
  add_run_options(*app, *args);
  return {app, [args] { return run(*args); }};
}

}  // namespace kktorch::cli
