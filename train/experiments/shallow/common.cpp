#include "train/experiments/shallow/common.h"

#include <chrono>
#include <cmath>
#include <optional>

#include "ops/shk.h"
#include "train/common/error.h"
#include "train/dynamics/ntk.h"
#include "train/loop/metrics.h"
#include "train/loop/seed_stream.h"

namespace kktorch::shallow {
namespace {

using dynamics::Descent;
using dynamics::DescentOptions;
using dynamics::Evaluation;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr int64_t kProbes = 256;  // samples of bounds, linearisation error and tangent kernel
constexpr double kSlack = 1e-9;   // of float64

model::Data head_of(const model::Data& data, int64_t count) {
  const int64_t n = std::min(count, data.X.size(0));
  return {data.X.narrow(0, 0, n), data.q.narrow(0, 0, n), data.y.narrow(0, 0, n), data.bounded};
}

dynamics::Kernels kernels_of(const model::Data& data, const model::Params& phi) {
  const auto [h, B, G] = shk_features(data.X, data.q, phi.W, phi.U);
  const auto c = phi.c.view({1, -1, 1});
  const auto gram = [&](const at::Tensor& t) {
    const auto flat = t.flatten(1);
    return torch::matmul(flat, flat.t()) / static_cast<double>(phi.heads());
  };
  const auto queries = torch::matmul(data.q, data.q.t());
  return {{gram(h), gram(c * B), queries * gram(c * G)}};
}

/// What is known of a run before it starts, and the rows of its steps.
class Observer {
 public:
  Observer(const Training& t, const Context& context, const std::filesystem::path& folder)
      : t_(t),
        probes_(head_of(t.data, kProbes)),
        linear_(probes_, t.phi0),
        constants_(model::constants(t.phi0, t.rho, t.nu, t.data.X.size(0))),
        variance_(variance(t.data.y)),
        bounded_(t.data.bounded && std::isfinite(t.rho.c + t.rho.u + t.rho.w)),
        invariants_(context.invariants(), kSlack),
        sink_(folder),
        start_(std::chrono::steady_clock::now()) {
    if (t.tangent_kernel) kernels_ = kernels_of(probes_, t.phi0);
  }

  const model::Constants& constants() const { return constants_; }
  double label_variance() const { return variance_; }
  int64_t violations() const { return invariants_.violations(); }

  void operator()(const Descent& run, const Evaluation& evaluation) {
    if (!begun_) sink_.keep_until(run.step() - 1, "step");  // rows behind the checkpoint
    begun_ = true;
    check_cheap(run, evaluation);
    if (!is_logged(run.step(), t_.steps) && !run.diverged()) return;
    sink_.append(row_of(run, evaluation));
  }

 private:
  void check_cheap(const Descent& run, const Evaluation& e) {
    if (run.step() == 0)
      invariants_.at_most("J6 f at the start", 0, e.outputs.abs().max().item<double>(), 0,
                          1e-12 * std::sqrt(static_cast<double>(t_.phi0.heads())));
    invariants_.at_most("J3 feasibility", run.step(), run.infeasibility(), 0, 1e-12);
    if (bounded_)
      invariants_.at_most("J5 |f|", run.step(), e.outputs.abs().max().item<double>(),
                          constants_.f_bound);
  }

  void check_features(int64_t step, double sup, const model::AttentionFacts& facts,
                      const json& norms) {
    if (!bounded_) return;
    invariants_.at_most("J1 attended token", step, facts.largest_mean, 1);
    invariants_.at_most("J1 trace of the covariance", step, facts.largest_trace, 1);
    invariants_.at_most("J1 trace of the covariance, from below", step, -facts.smallest_trace, 0,
                        1e-12);
    invariants_.at_most("J2 gradient in c", step, norms.at("c"), constants_.gradient_c);
    invariants_.at_most("J2 gradient in U", step, norms.at("U"), constants_.gradient_u);
    invariants_.at_most("J2 gradient in W", step, norms.at("W"), constants_.gradient_w);
    invariants_.at_most("J4 linearisation", step, sup, constants_.B_lin);
  }

  /// Largest norm over the probes of the gradient of f, by block.
  json gradient_norms(const model::Params& phi) const {
    const auto [h, B, G] = shk_features(probes_.X, probes_.q, phi.W, phi.U);
    const auto c = phi.c.view({1, -1, 1});
    const double root = std::sqrt(static_cast<double>(phi.heads()));
    const auto largest = [&](const at::Tensor& norms) { return norms.max().item<double>() / root; };
    return {{"c", largest(h.norm(2, 1))},
            {"U", largest((c * B).flatten(1).norm(2, 1))},
            {"W", largest((c * G).flatten(1).norm(2, 1) * probes_.q.norm(2, 1))}};
  }

  ordered_json row_of(const Descent& run, const Evaluation& e) {
    const auto phi = model::params_of(run.parameters());
    const auto f = shk_output(probes_.X, probes_.q, phi.W, phi.U, phi.c);
    const auto gap = model::deviation(f - linear_(phi));
    const auto facts = model::attention_facts(probes_, phi);
    const auto norms = gradient_norms(phi);
    check_features(run.step(), gap.sup, facts, norms);
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start_;
    const double root = std::sqrt(static_cast<double>(phi.heads()));
    const int64_t half = phi.heads() / 2;
    const auto pairs = phi.U.narrow(0, 0, half) - phi.U.narrow(0, half, half);
    ordered_json row = {{"step", run.step()},
                        {"wall_s", wall.count()},
                        {"train_loss", e.loss},
                        {"train_loss_over_var", e.loss / variance_},
                        {"min_loss", run.running_min()},
                        {"step_of_min", run.step_of_min()},
                        {"path_length", run.path_length()},
                        {"infeasibility", run.infeasibility()}};
    const double radii[] = {t_.rho.w, t_.rho.u, t_.rho.c};
    double squares = 0, gradient_squares = 0;
    for (size_t b = 0; b < run.blocks().size(); ++b) {
      const auto& name = run.blocks()[b].name;
      const double gradient = e.gradients[b].norm().item<double>(), moved = run.distance(b);
      row["grad_norm_" + name] = gradient;
      row["dist_" + name] = moved;
      row["head_dist_over_radius_" + name] = run.head_distance(b) * root / radii[b];
      row["projected_" + name] = run.projected(b);
      squares += moved * moved;
      gradient_squares += gradient * gradient;
    }
    row["grad_norm"] = std::sqrt(gradient_squares);
    row["dist"] = std::sqrt(squares);
    row["linearisation_sup"] = gap.sup;
    row["linearisation_rms"] = gap.rms;
    row["linearisation_sup_over_std"] = gap.sup / std::sqrt(variance_);
    row["max_f"] = e.outputs.abs().max().item<double>();
    const auto over = [&](double value, double bound) {
      return bounded_ ? ordered_json(value / bound) : nullptr;
    };
    row["linearisation_over_bound"] = over(gap.sup, constants_.B_lin);
    row["f_over_bound"] = over(e.outputs.abs().max().item<double>(), constants_.f_bound);
    row["grad_c_over_bound"] = over(norms.at("c"), constants_.gradient_c);
    row["grad_U_over_bound"] = over(norms.at("U"), constants_.gradient_u);
    row["grad_W_over_bound"] = over(norms.at("W"), constants_.gradient_w);
    row["grad_f_c"] = norms.at("c");
    row["grad_f_U"] = norms.at("U");
    row["grad_f_W"] = norms.at("W");
    row["trace_min"] = facts.smallest_trace;
    row["trace_max"] = facts.largest_trace;
    row["attention_entropy"] = facts.entropy;
    row["pair_drift"] = pairs.norm(2, 1).max().item<double>();
    if (t_.tangent_kernel) add_kernels(row, phi, run.step());
    return row;
  }

  /// Every row has the columns; they are computed at 0, K/8, K/2 and K.
  void add_kernels(ordered_json& row, const model::Params& phi, int64_t step) const {
    const int64_t K = t_.steps;
    const bool now = step == 0 || step == K / 8 || step == K / 2 || step == K;
    const char* const names[] = {"ntk_drift_c", "ntk_drift_U", "ntk_drift_W"};
    for (const auto* name : names) row[name] = nullptr;
    for (const auto* name : {"ntk_alignment", "ntk_min", "ntk_max", "ntk_effective_rank"})
      row[name] = nullptr;
    if (!now) return;
    const auto kernels = kernels_of(probes_, phi);
    for (size_t b = 0; b < kernels.blocks.size(); ++b)
      row[names[b]] = dynamics::drift(kernels.blocks[b], kernels_->blocks[b]);
    const auto [smallest, largest, rank] = dynamics::spectrum(kernels.total());
    row["ntk_alignment"] = dynamics::alignment(kernels.total(), probes_.y);
    row["ntk_min"] = smallest;
    row["ntk_max"] = largest;
    row["ntk_effective_rank"] = rank;
  }

  const Training& t_;
  model::Data probes_;
  model::Linearised linear_;
  model::Constants constants_;
  double variance_;
  bool bounded_;
  dynamics::Invariants invariants_;
  MetricsSink sink_;
  std::chrono::steady_clock::time_point start_;
  std::optional<dynamics::Kernels> kernels_;
  bool begun_ = false;
};

DescentOptions options_of(const Training& t, double label_variance) {
  DescentOptions options;
  options.step_size = 1 / std::sqrt(static_cast<double>(t.steps));
  options.steps = t.steps;
  options.samples = t.data.X.size(0);
  options.batch = t.batch;
  options.seed = t.seed;
  options.average = true;
  options.loss_floor = label_variance;
  options.evaluate_every = t.batch > 0 ? std::max<int64_t>(1, t.steps / 256) : 1;
  return options;
}

/// sup over the training data and the logged steps of |f - f_twin| at the end.
double twin_distance(const Training& t, const DescentOptions& options, const at::Tensor& f) {
  const model::Linearised linear(t.data, t.phi0);
  auto twin_options = options;
  twin_options.folder.clear();
  Descent twin(
      model::blocks_of(t.phi0, t.rho),
      [&](const auto& blocks, const auto&) {
        return linear.evaluate(model::params_of(blocks), t.data.y);
      },
      twin_options);
  twin.run([](const auto&, const auto&) {});
  return (f - linear(model::params_of(twin.parameters()))).abs().max().item<double>();
}

}  // namespace

std::vector<ResultTable> run_tables(const Sweep& sweep, const std::string& title,
                                    const std::string& across, std::vector<Curve> more) {
  more.insert(more.begin(), {{"train_loss_over_var", "L_n / var(y)"},
                             {"linearisation_sup_over_std", "sup |f - f_lin| / sd(y)"}});
  auto tables = curve_tables(sweep, title, across, more);
  tables.push_back(bound_table(sweep, title,
                               {{"linearisation_over_bound", "sup |f - f_lin| over B_lin"},
                                {"f_over_bound", "sup |f|"},
                                {"grad_c_over_bound", "||grad_c f||"},
                                {"grad_U_over_bound", "||grad_U f||"},
                                {"grad_W_over_bound", "||grad_W f||"}}));
  return tables;
}

ordered_json base_settings(int64_t n, int64_t seeds) {
  return {{"n", n},       {"T", 16},       {"d", 8},          {"activation", "tanh"},
          {"rho", 3.0},   {"nu", 3.0},     {"query", "last"}, {"anchors", 8},
          {"pool", 8192}, {"delta", 0.05}, {"seeds", seeds}};
}

std::map<std::string, std::vector<std::string>> base_choices() {
  return {{"query", {"last", "fixed"}}};
}

Problem unlabelled_problem_of(const json& s, uint64_t seed) {
  const int64_t T = s.at("T"), d = s.at("d");
  const double rho = s.at("rho"), nu = s.at("nu");
  if (rho < nu) fail("shallow: expected rho >= nu, but got {} and {}", rho, nu);
  const auto query = torch::randn({d}, generator_of(seed, "query"), torch::kDouble);
  const auto draw = [&](int64_t n, const char* purpose) {
    auto data = model::clipped_normal(n, T, d, generator_of(seed, purpose));
    if (s.at("query") == "fixed") data.q = (query / query.norm()).expand({n, d}).contiguous();
    return data;
  };
  Problem problem{
      {rho, rho, rho},
      model::Teacher(draw(s.at("anchors"), "anchors"), {nu, nu, nu}, s.at("pool"), seed),
      draw(s.at("n"), "train")};
  model::check_data(problem.data);
  return problem;
}

Problem problem_of(const json& s, uint64_t seed) {
  auto problem = unlabelled_problem_of(s, seed);
  problem.data.y = problem.teacher.labels(problem.data);
  model::check_data(problem.data);
  return problem;
}

double variance(const at::Tensor& y) {
  const double value = (y - y.mean()).square().mean().item<double>();
  if (!(value >= 1e-12)) fail("shallow: expected labels of variance >= 1e-12, but got {}", value);
  return value;
}

json train(const Training& t, const Context& context, const std::filesystem::path& folder) {
  const at::NoGradGuard no_grad;
  Observer observer(t, context, folder);
  auto options = options_of(t, observer.label_variance());
  options.folder = folder;
  Descent run(model::blocks_of(t.phi0, t.rho), model::objective(t.data), options);
  at::Tensor last;
  run.run([&](const Descent& now, const Evaluation& evaluation) {
    observer(now, evaluation);
    last = evaluation.outputs;
  });
  std::filesystem::remove(folder / "descent.pt");
  const double variance = observer.label_variance();
  json summary = {{"diverged", run.diverged() ? 1 : 0},
                  {"violations", observer.violations()},
                  {"min_loss", run.running_min()},
                  {"min_loss_over_var", run.running_min() / variance},
                  {"step_of_min", run.step_of_min()},
                  {"variance", variance},
                  {"path_length", run.path_length()},
                  {"workspace_bytes", shk_workspace_bytes(t.data.X, t.data.q, t.phi0.W, t.phi0.U)}};
  const auto& k = observer.constants();
  summary.update(
      {{"B_U", k.B_U}, {"L1", k.L1}, {"L2", k.L2}, {"B_lin", k.B_lin}, {"B_app", k.B_app}});
  const auto mean = run.average();
  const auto f = shk_output(t.data.X, t.data.q, mean[0], mean[1], mean[2]);
  summary["average_loss"] = (f - t.data.y).square().mean().item<double>();
  if (t.linear_twin) summary["twin_sup"] = twin_distance(t, options, last);
  return summary;
}

}  // namespace kktorch::shallow
