#include "train/experiments/multihead/common.h"

#include <chrono>
#include <cmath>
#include <numbers>
#include <optional>

#include "ops/mhgd.h"
#include "train/common/error.h"
#include "train/dynamics/data_file.h"
#include "train/dynamics/margin.h"
#include "train/experiments/curves.h"
#include "train/experiments/logged_steps.h"
#include "train/loop/metrics.h"

namespace kktorch::multihead {
namespace {

using dynamics::Descent;
using dynamics::Evaluation;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr int64_t kProbes = 128;  // samples of the tangent kernel and of attention
constexpr double kSlack = 1e-9;   // of float64

double number(const at::Tensor& t) { return t.item<double>(); }

model::Data head_of(const model::Data& data, int64_t count) {
  const int64_t n = std::min(count, data.X.size(0));
  model::Data head{data.X.narrow(0, 0, n), data.y.narrow(0, 0, n), {}, data.R};
  if (data.relevant.defined()) head.relevant = data.relevant.narrow(0, 0, n);
  return head;
}

class Observer {
 public:
  Observer(const Training& t, const Context& context, const std::filesystem::path& folder)
      : t_(t),
        probes_(head_of(t.data, kProbes)),
        linear_(t.data, t.start),
        invariants_(context.invariants(), kSlack),
        sink_(folder),
        start_(std::chrono::steady_clock::now()) {
    const double label = number(t.data.y.mean());
    variance_ = 1 - label * label;
    if (variance_ < 1e-12) fail("multihead: expected labels of both classes, but got one");
    if (t.tangent_kernel) kernels_ = model::kernels(probes_.X, t.start);
  }

  int64_t violations() const { return invariants_.violations(); }
  const ordered_json& last_row() const { return last_row_; }
  double loss_increases() const { return static_cast<double>(increases_); }

  void operator()(const Descent& run, const Evaluation& e) {
    if (!begun_) sink_.keep_until(run.step() - 1, "step");  // rows behind the checkpoint
    begun_ = true;
    const auto theta = model::params_of(run.parameters());
    const auto bounds = model::bounds(theta, t_.data.R);
    check_every_step(run, e, bounds);
    if (!is_logged(run.step(), t_.steps) && !run.diverged()) return;
    last_row_ = row_of(run, e, theta, bounds);
    sink_.append(last_row_);
  }

 private:
  void check_every_step(const Descent& run, const Evaluation& e, const model::Bounds& b) {
    const double gW = number(e.gradients[0].norm()), gU = number(e.gradients[1].norm());
    invariants_.at_most("I3 ||grad L|| <= beta1 L", run.step(), std::hypot(gW, gU),
                        b.beta1 * e.loss);
    invariants_.at_most("I7 distance <= path", run.step(),
                        std::hypot(run.distance(0), run.distance(1)), run.path_length(), 1e-12);
    if (run.step() > 0 && e.loss > last_loss_) {
      ++increases_;
      if (t_.step_size * std::max(b.lambda_max, last_lambda_) <= 1)
        invariants_.at_most("I6 loss does not grow", run.step(), e.loss, last_loss_);
    }
    last_loss_ = e.loss;
    last_lambda_ = b.lambda_max;
  }

  void check_attention(int64_t step, const model::AttentionFacts& f) {
    const double R2 = t_.data.R * t_.data.R;
    invariants_.at_most("I1 attended token", step, f.largest_norm, t_.data.R);
    invariants_.at_most("I1 trace of the covariance", step, f.largest_trace, R2);
    invariants_.at_most("I1 trace of the covariance, from below", step, -f.smallest_trace, 0,
                        1e-12 * R2);
    invariants_.at_most("I2 gradient in W", step, f.product_over_bound, 1);
  }

  ordered_json row_of(const Descent& run, const Evaluation& e, const model::Params& theta,
                      const model::Bounds& b) {
    const auto facts = model::attention_facts(probes_, theta);
    check_attention(run.step(), facts);
    const auto test = mhgd_logits(t_.test.X, theta.W, theta.U);
    const double test_loss = model::logistic_loss(test, t_.test.y);
    const auto margin = e.outputs * t_.data.y;
    const auto gap = (e.outputs - linear_(theta)).abs();
    const double dist = std::hypot(run.distance(0), run.distance(1));
    const double gW = number(e.gradients[0].norm()), gU = number(e.gradients[1].norm());
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start_;
    ordered_json row = {
        {"step", run.step()},
        {"wall_s", wall.count()},
        {"train_loss", e.loss},
        {"train_loss_over_log2", e.loss / std::numbers::ln2},
        {"train_err", model::zero_one_error(e.outputs, t_.data.y)},
        {"test_loss", test_loss},
        {"test_err", model::zero_one_error(test, t_.test.y)},
        {"gap", test_loss - e.loss},
        {"min_loss", run.running_min()},
        {"step_of_min", run.step_of_min()},
        {"grad_norm", std::hypot(gW, gU)},
        {"grad_norm_W", gW},
        {"grad_norm_U", gU},
        {"grad_over_loss", std::hypot(gW, gU) / e.loss},
        {"beta1", b.beta1},
        {"beta1_paper", b.beta1_paper},
        {"kappa", b.kappa},
        {"max_phi", number(e.outputs.abs().max())},
        {"min_margin", number(margin.min())},
        {"median_margin", number(margin.median())},
        {"dist", dist},
        {"dist_W", run.distance(0)},
        {"dist_U", run.distance(1)},
        {"head_dist_W", run.head_distance(0)},
        {"head_dist_U", run.head_distance(1)},
        {"path_length", run.path_length()},
        {"theta_2inf", b.theta_2inf},
        {"linearisation_sup", number(gap.max())},
        {"linearisation_rms", std::sqrt(number(gap.square().mean()))},
        {"linearisation_rms_over_sd", std::sqrt(number(gap.square().mean()) / variance_)},
        {"attention_entropy", facts.entropy},
        {"relevant_mass", facts.relevant_mass},
        {"head_similarity", model::head_similarity(theta.W, t_.start.W)}};
    row["grad_over_bound"] = std::hypot(gW, gU) / e.loss / b.beta1;
    row["normalised_margin"] = dist > 0 ? ordered_json(number(margin.min()) / dist) : nullptr;
    if (t_.tangent_kernel) add_kernels(row, theta, run.step());
    if (t_.curvature) add_curvature(row, theta, b, e.loss, run.step());
    return row;
  }

  bool is_milestone(int64_t step) const {
    const int64_t K = t_.steps;
    return step == 0 || step == K / 8 || step == K / 2 || step == K;
  }

  void add_kernels(ordered_json& row, const model::Params& theta, int64_t step) const {
    for (const auto* name : {"ntk_drift_U", "ntk_drift_W", "ntk_alignment", "ntk_min", "ntk_max",
                             "ntk_effective_rank", "ntk_margin_lower", "ntk_margin_upper"})
      row[name] = nullptr;
    if (!is_milestone(step)) return;
    const auto kernels = model::kernels(probes_.X, theta);
    const auto total = kernels.total();
    const auto [smallest, largest, rank] = dynamics::spectrum(total);
    const auto margin = dynamics::kernel_margin(total, probes_.y);
    row["ntk_drift_U"] = dynamics::drift(kernels.blocks[0], kernels_->blocks[0]);
    row["ntk_drift_W"] = dynamics::drift(kernels.blocks[1], kernels_->blocks[1]);
    row["ntk_alignment"] = dynamics::alignment(total, probes_.y);
    row["ntk_min"] = smallest;
    row["ntk_max"] = largest;
    row["ntk_effective_rank"] = rank;
    row["ntk_margin_lower"] = margin.lower;
    row["ntk_margin_upper"] = margin.upper;
  }

  void add_curvature(ordered_json& row, const model::Params& theta, const model::Bounds& b,
                     double loss, int64_t step) {
    for (const auto* name : {"lambda_max", "lambda_min", "negative_over_loss", "largest_over_bound",
                             "smallest_over_bound"})
      row[name] = nullptr;
    if (!is_milestone(step)) return;
    const auto found = model::curvature(t_.data, theta, t_.seed);
    const double slack = 1e-5 * std::abs(found.largest.value);  // of the differences
    invariants_.at_most("I5 largest eigenvalue", step, found.largest.value, b.lambda_max, slack);
    invariants_.at_most("I5 smallest eigenvalue", step, -found.smallest.value, b.kappa * loss,
                        slack);
    row["lambda_max"] = found.largest.value;
    row["lambda_min"] = found.smallest.value;
    row["negative_over_loss"] = -found.smallest.value / loss;
    row["largest_over_bound"] = found.largest.value / b.lambda_max;
    row["smallest_over_bound"] = -found.smallest.value / (b.kappa * loss);
  }

  const Training& t_;
  model::Data probes_;
  model::Linearised linear_;
  dynamics::Invariants invariants_;
  MetricsSink sink_;
  std::chrono::steady_clock::time_point start_;
  std::optional<dynamics::Kernels> kernels_;
  ordered_json last_row_;
  double variance_ = 1, last_loss_ = 0, last_lambda_ = 0;
  int64_t increases_ = 0;
  bool begun_ = false;
};

/// Generalised local quasi-convexity between the start and the end: the largest loss at 11 points
/// of the segment over the larger one of its ends. At most 16/15 where kappa D^2 <= 1/2.
double quasi_convexity(const Training& t, const model::Params& end) {
  double ends = 0, largest = 0;
  for (int i = 0; i <= 10; ++i) {
    const double s = 0.1 * i;
    const auto phi = mhgd_logits(t.data.X, t.start.W.lerp(end.W, s), t.start.U.lerp(end.U, s));
    const double loss = model::logistic_loss(phi, t.data.y);
    largest = std::max(largest, loss);
    if (i % 10 == 0) ends = std::max(ends, loss);
  }
  return largest / ends;
}

}  // namespace

ordered_json mixture_settings(int64_t n, int64_t seeds) {
  return {{"n", n},
          {"T", 10},
          {"zeta", 0.2},
          {"M", 8},
          {"d", 10},
          {"S", 1.0},
          {"noise_sigma", 0.0},
          {"flip_probability", 0.0},
          {"location", "random"},
          {"basis", "haar"},
          {"save_data", "no"},
          {"step_size", 1.0},
          {"seeds", seeds}};
}

std::map<std::string, std::vector<std::string>> mixture_choices() {
  return {{"location", {"random", "first"}},
          {"basis", {"haar", "canonical"}},
          {"save_data", {"no", "yes"}}};
}

model::MixtureOptions mixture_options(const json& s) {
  model::MixtureOptions options;
  options.T = s.at("T");
  options.d = s.at("d");
  options.M = s.at("M");
  options.zeta = s.at("zeta");
  options.S = s.at("S");
  options.noise_sigma = s.at("noise_sigma");
  options.flip_probability = s.at("flip_probability");
  options.random_location = s.at("location") == "random";
  options.canonical_basis = s.at("basis") == "canonical";
  return options;
}

int64_t test_size(const json& settings, int64_t n) {
  return settings.contains("n_test") ? settings.at("n_test").get<int64_t>()
                                     : std::max<int64_t>(3000, 10 * n);
}

Trained train(const Training& t, const Context& context, const std::filesystem::path& folder) {
  const at::NoGradGuard no_grad;
  if (context.settings().value("save_data", "no") == "yes") {
    model::keep_data(folder / "train.pt", t.data, t.seed);
    model::keep_data(folder / "test.pt", t.test, t.seed);
  }
  Observer observer(t, context, folder);
  dynamics::DescentOptions options;
  options.step_size = t.step_size;
  options.steps = t.steps;
  options.samples = t.data.X.size(0);
  options.seed = t.seed;
  options.loss_floor = std::numbers::ln2;
  options.folder = folder;
  Descent run(model::blocks_of(t.start), model::objective(t.data), options);
  run.run([&](const Descent& now, const Evaluation& e) { observer(now, e); });
  std::filesystem::remove(folder / "descent.pt");
  json summary = {{"diverged", run.diverged() ? 1 : 0},
                  {"violations", observer.violations()},
                  {"increases", observer.loss_increases()},
                  {"R", t.data.R},
                  {"workspace_bytes", mhgd_workspace_bytes(t.data.X, t.start.W, t.start.U)},
                  {"quasi_convexity", quasi_convexity(t, model::params_of(run.parameters()))},
                  {"min_loss", run.running_min()}};
  for (const auto& [name, value] : observer.last_row().items())
    if (value.is_number() && name != "step" && name != "wall_s" && name != "min_loss" &&
        std::isfinite(value.get<double>()))
      summary[name] = value;
  return {summary, model::params_of(run.parameters())};
}

std::vector<ResultTable> sweep_heads(Context& context, const std::string& label,
                                     const std::function<Trial(int64_t H, uint64_t seed)>& trial) {
  const json s = context.settings();
  std::vector<ResultTable> tables;
  for (const bool scaled : {false, true}) {
    const auto title = label + (scaled ? ", step growing like sqrt(H)" : ", constant step");
    const auto sweep =
        run_sweep(context, label + (scaled ? "-scaled-H" : "-constant-H"), numbers(s.at("H")),
                  [&](double H, uint64_t seed, const auto& folder) {
                    const auto [data, test, start] = trial(static_cast<int64_t>(H), seed);
                    const double eta = s.at("step_size");
                    return train({.data = data,
                                  .test = test,
                                  .start = start,
                                  .step_size = scaled ? eta * std::sqrt(H) : eta,
                                  .steps = s.at("steps"),
                                  .seed = seed},
                                 context, folder)
                        .summary;
                  });
    append(tables, sweep_tables(sweep, title, "heads H", "value at the last step",
                                {{"train_loss", "training loss", ""},
                                 {"test_loss", "test loss", ""},
                                 {"dist", "||theta - theta_0||", ""},
                                 {"kappa", "kappa", "-1/2 at fixed ||theta||"}}));
    tables.push_back(
        mean_table(sweep, title + ": errors and bounds", "heads H",
                   {{"train_err", "training error"},
                    {"test_err", "test error"},
                    {"grad_over_loss", "||grad L|| / L"},
                    {"beta1", "its bound beta_1"},
                    {"linearisation_sup", "sup |Phi - Phi_lin|"},
                    {"quasi_convexity", "largest loss from start to end, over the ends"},
                    {"workspace_bytes", "workspace of a gradient [bytes]"},
                    {"violations", "violated invariants"},
                    {"increases", "steps that raised the loss"},
                    {"diverged", "diverged"}}));
    append(tables, curve_tables(sweep, title, "heads H",
                                {{"train_loss", "training loss"},
                                 {"gap", "test loss - training loss", false},
                                 {"head_similarity", "cosine of the heads' updates", false}}));
    tables.push_back(
        bound_table(sweep, title, {{"grad_over_bound", "||grad L|| / L over beta_1"}}));
  }
  return tables;
}

}  // namespace kktorch::multihead
