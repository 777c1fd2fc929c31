#include "ops/convex_solver.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/xlogy.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "ops/convex/inputs.h"
#include "ops/convex/interrupt.h"
#include "ops/convex/prepared.h"

namespace kktorch {
namespace {

using at::Tensor;
using detail::prepare;
using detail::Prepared;
using detail::run_parallel;

Tensor copy_of(const std::vector<double>& values, at::IntArrayRef shape) {
  return at::tensor(values, at::kDouble).view(shape);
}

template <typename T>
ConvexResult solved(const Prepared& p, double beta, const ConvexOptions& options) {
  const detail::CaughtInterrupt interrupt(options.catch_interrupt);
  csrc::SolveOptions core = {.tol_rel = options.tol_rel >= 0 ? options.tol_rel
                                        : sizeof(T) == 8     ? 1e-6
                                                             : 1e-4,
                             .tol_abs = options.tol_abs,
                             .max_iter = options.max_iter,
                             .screen_every = options.screen_every,
                             .time_limit = options.time_limit,
                             .lip = options.lip};
  core.progress = [&](const csrc::Iterate& now) {
    return !interrupt.arrived() && (!options.progress || options.progress(now));
  };
  std::vector<T> start;
  if (options.Z0) {
    detail::check_state("solve", "Z0", *options.Z0, p);
    const Tensor Z0 = p.inner(options.Z0->to(c10::CppTypeToScalarType<T>::value));
    start.assign(Z0.const_data_ptr<T>(), Z0.const_data_ptr<T>() + Z0.numel());
  }
  const auto data = p.data<T>();
  const auto s = csrc::solve_convex<T>(data, beta, core, std::move(start), run_parallel);
  ConvexResult result;
  const Tensor state = at::empty(p.state_shape(), c10::CppTypeToScalarType<T>::value);
  std::copy(s.Z.begin(), s.Z.end(), state.mutable_data_ptr<T>());
  result.Z = p.outer(state);
  result.multipliers = copy_of(s.multipliers, p.prediction_shape());
  std::vector<double> rows;
  for (const auto& now : s.history)
    rows.insert(rows.end(),
                {static_cast<double>(now.iteration), now.seconds, now.objective, now.gap});
  result.history = copy_of(rows, {static_cast<int64_t>(s.history.size()), 4});
  result.F = s.objective;
  result.D = s.dual;
  result.gap = s.gap;
  result.beta_max = s.beta_max;
  result.lip = s.lip;
  result.status = csrc::status_name(s.status);
  result.iterations = s.iterations;
  result.reads = s.reads;
  result.backtracks = s.backtracks;
  result.restarts = s.restarts;
  result.screened = s.screened;
  return result;
}

ConvexResult solve_named(std::string_view function, const Tensor& X, const Tensor& Y, double beta,
                         const ConvexOptions& options) {
  const auto p = prepare(function, X, Y, options);
  detail::check_beta(function, beta);
  return p.is_double ? solved<double>(p, beta, options) : solved<float>(p, beta, options);
}

/// F(0): loss of predictions that are all zero.
double value_at_zero(const Prepared& p) {
  const double rows = static_cast<double>(p.N * (p.is_sequence ? p.n : 1));
  switch (p.loss) {
    case csrc::Loss::kLogistic:
      return rows * static_cast<double>(p.c) * std::log(2.);
    case csrc::Loss::kCrossEntropy:
      return rows * std::log(static_cast<double>(p.c));
    default:
      return p.Y.to(at::kDouble).square().sum().item<double>();
  }
}

}  // namespace

ConvexResult solve(const Tensor& X, const Tensor& Y, double beta, const ConvexOptions& options) {
  return solve_named("solve", X, Y, beta, options);
}

ConvexResult solve_sequence(const Tensor& X, const Tensor& Y, double beta, ConvexOptions options) {
  if (options.penalty != "substochastic") options.penalty = "sequence";
  return solve_named("solve_sequence", X, Y, beta, options);
}

double beta_max(const Tensor& X, const Tensor& Y, const ConvexOptions& options) {
  const auto p = prepare("beta_max", X, Y, options);
  return p.is_double ? csrc::convex_beta_max(p.data<double>(), run_parallel)
                     : csrc::convex_beta_max(p.data<float>(), run_parallel);
}

std::vector<ConvexResult> solve_path(const Tensor& X, const Tensor& Y,
                                     const std::vector<double>& rhos,
                                     const ConvexOptions& options) {
  for (size_t i = 0; i < rhos.size(); ++i)
    TORCH_CHECK_VALUE(rhos[i] > 0 && rhos[i] <= 1 && (i == 0 || rhos[i] < rhos[i - 1]),
                      "solve_path: expected rhos in (0, 1], descending, but got ", rhos);
  const double top = beta_max(X, Y, options);
  auto step = options;
  std::vector<ConvexResult> path;
  for (const double rho : rhos) {
    path.push_back(solve(X, Y, rho * top, step));
    step.Z0 = path.back().Z;
    if (path.back().lip > 0) step.lip = path.back().lip;
    if (path.back().status == "interrupted") break;
  }
  return path;
}

ConvexCertificate certify(const Tensor& X, const Tensor& Y, double beta, const Tensor& Z,
                          const ConvexOptions& options, const std::optional<Tensor>& hint) {
  const auto p = prepare("certify", X, Y, options);
  detail::check_beta("certify", beta);
  detail::check_state("certify", "Z", Z, p);
  const auto state = p.inner(Z.to(at::kDouble));
  Tensor lambda;
  if (hint) {
    TORCH_CHECK(hint->sizes() == at::IntArrayRef(p.prediction_shape()),
                "certify: expected multipliers of shape ", at::IntArrayRef(p.prediction_shape()),
                ", but got ", hint->sizes());
    lambda = hint->to(at::kDouble).contiguous();
  }
  const double* hinted = hint ? lambda.const_data_ptr<double>() : nullptr;
  std::vector<double> multipliers;
  const auto call = [&](const auto& data) {
    return csrc::certify_convex(data, beta, state.const_data_ptr<double>(), hinted, run_parallel,
                                &multipliers);
  };
  auto c = p.is_double ? call(p.data<double>()) : call(p.data<float>());
  const double rounding = 1e-9 * std::max(c.objective, value_at_zero(p));
  TORCH_INTERNAL_ASSERT(!(c.gap < -rounding), "certify: negative duality gap ", c.gap);
  return {c.objective, c.dual, std::max(0., c.gap), c.penalty,
          copy_of(multipliers, p.prediction_shape())};
}

double dual_value(const Tensor& multipliers, const Tensor& Y, const std::string& loss) {
  const auto v = multipliers.to(at::kDouble);
  const auto kind = detail::loss_of("dual_value", loss);
  if (kind == csrc::Loss::kCrossEntropy) {
    const auto q =
        Y.is_floating_point() ? Y.to(at::kDouble) : at::one_hot(Y, v.size(-1)).to(at::kDouble);
    const auto p = (q + v).clamp_min(0);
    return -at::xlogy(p, p).sum().item<double>();
  }
  const auto y = Y.to(at::kDouble);
  if (kind == csrc::Loss::kLogistic) {
    const auto q = (-y * v).clamp(0, 1);
    return -(at::xlogy(q, q) + at::xlogy(1 - q, 1 - q)).sum().item<double>();
  }
  const double curvature = kind == csrc::Loss::kSquared ? 0.25 : 0.5;
  return -(curvature * v.square() + v * y).sum().item<double>();
}

// ---- for other languages: plain types, called without derivatives ----

namespace {

ConvexOptions options_of(std::string_view loss, std::string_view penalty,
                         const std::optional<Tensor>& gate, int64_t num_values, int64_t classes) {
  ConvexOptions options;
  options.loss = loss;
  options.penalty = penalty;
  options.gate = gate;
  options.num_values = num_values;
  options.classes = classes;
  return options;
}

using Solved = std::tuple<Tensor, Tensor, Tensor, Tensor, std::string>;

Solved solve_boxed(const Tensor& X, const Tensor& Y, double beta, std::string_view loss,
                   std::string_view penalty, const std::optional<Tensor>& gate, int64_t num_values,
                   int64_t classes, const std::optional<Tensor>& Z0, double tol_rel, double tol_abs,
                   int64_t max_iter, int64_t screen_every, double time_limit, double lip,
                   std::string_view function) {
  auto options = options_of(loss, penalty, gate, num_values, classes);
  options.Z0 = Z0;
  options.tol_rel = tol_rel;
  options.tol_abs = tol_abs;
  options.max_iter = max_iter;
  options.screen_every = screen_every;
  options.time_limit = time_limit;
  options.lip = lip;
  options.catch_interrupt = true;
  const auto r = solve_named(function, X, Y, beta, options);
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  return {r.Z, r.multipliers, r.history,
          copy_of({r.F, r.D, r.gap, r.beta_max, r.lip, number(r.iterations), number(r.reads),
                   number(r.backtracks), number(r.restarts), number(r.screened)},
                  {10}),
          r.status};
}

std::tuple<Tensor, Tensor> certify_boxed(const Tensor& X, const Tensor& Y, double beta,
                                         const Tensor& Z, std::string_view loss,
                                         std::string_view penalty,
                                         const std::optional<Tensor>& gate, int64_t num_values,
                                         int64_t classes, const std::optional<Tensor>& hint) {
  const auto c = certify(X, Y, beta, Z, options_of(loss, penalty, gate, num_values, classes), hint);
  return {copy_of({c.F, c.D, c.gap, c.penalty}, {4}), c.multipliers};
}

double beta_max_boxed(const Tensor& X, const Tensor& Y, std::string_view loss,
                      std::string_view penalty, const std::optional<Tensor>& gate,
                      int64_t num_values, int64_t classes) {
  return beta_max(X, Y, options_of(loss, penalty, gate, num_values, classes));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def(
      "_convex_solve(Tensor X, Tensor Y, float beta, str loss, str penalty, Tensor? gate, "
      "int num_values, int classes, Tensor? Z0, float tol_rel, float tol_abs, int max_iter, "
      "int screen_every, float time_limit, float lip, str function) -> "
      "(Tensor Z, Tensor multipliers, Tensor history, Tensor numbers, str status)");
  m.def(
      "_convex_certify(Tensor X, Tensor Y, float beta, Tensor Z, str loss, str penalty, "
      "Tensor? gate, int num_values, int classes, Tensor? hint) -> "
      "(Tensor numbers, Tensor multipliers)");
  m.def(
      "_convex_beta_max(Tensor X, Tensor Y, str loss, str penalty, Tensor? gate, int num_values, "
      "int classes) -> float");
}
TORCH_LIBRARY_IMPL(kktorch, CompositeExplicitAutograd, m) {
  m.impl("_convex_solve", &solve_boxed);
  m.impl("_convex_certify", &certify_boxed);
  m.impl("_convex_beta_max", &beta_max_boxed);
}

}  // namespace kktorch
