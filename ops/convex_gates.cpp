#include "ops/convex_gates.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_eigvalsh.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <set>
#include <vector>

#include "ops/convex/prepared.h"

namespace kktorch {
namespace {

using at::Tensor;

/// u1' X_i u2 in float64, [N, P].
Tensor scores(const Tensor& X, const Tensor& u1, const Tensor& u2) {
  std::vector<Tensor> parts;
  constexpr int64_t kRows = 4096;
  for (int64_t first = 0; first < X.size(0); first += kRows) {
    const auto block = X.narrow(0, first, std::min(kRows, X.size(0) - first)).to(at::kDouble);
    parts.push_back((block.matmul(u2.t()) * u1.t()).sum(1));
  }
  return at::cat(parts);
}

std::string packed(const Tensor& pattern) {
  const auto bytes = pattern.to(at::kByte).contiguous();
  const auto* bits = bytes.const_data_ptr<uint8_t>();
  std::string key((bytes.numel() + 7) / 8, '\0');
  for (int64_t i = 0; i < bytes.numel(); ++i) key[i / 8] |= static_cast<char>(bits[i] << (i % 8));
  return key;
}

/// Features of token ids or dense ones, float64 [N, n, d].
Tensor features_of(const Tensor& X, const ConvexOptions& options) {
  return options.num_values > 0 ? at::one_hot(X, options.num_values).to(at::kDouble)
                                : X.to(at::kDouble);
}

/// max over (l, k) of f(group norms [c, n]) for every candidate.
template <typename F>
Tensor over_gates(const Tensor& X, const Tensor& R, const Tensor& pattern, const F& f) {
  const auto Phi = X.flatten(1);
  auto values = at::empty({pattern.size(1)}, at::kDouble);
  for (int64_t m = 0; m < pattern.size(1); ++m) {
    const auto own = pattern.select(1, m).to(at::kDouble).unsqueeze(1);
    const auto G = (R * own).t().matmul(Phi).view({R.size(1), X.size(1), X.size(2)});
    values[m] = f(at::linalg_vector_norm(G, 2, {-1}));
  }
  return values;
}

/// dL/dA in float64.
Tensor residual(const Tensor& A, const Tensor& Y, csrc::Loss loss) {
  if (loss == csrc::Loss::kCrossEntropy) {
    const auto q =
        Y.is_floating_point() ? Y.to(at::kDouble) : at::one_hot(Y, A.size(-1)).to(at::kDouble);
    return A.softmax(-1) - q;
  }
  const auto y = Y.to(at::kDouble);
  if (loss == csrc::Loss::kLogistic) return -y * (-y * A).sigmoid();
  return (loss == csrc::Loss::kSquared ? 2 : 1) * (A - y);
}

}  // namespace

Tensor apply_gates(const Tensor& X, const Tensor& u1, const Tensor& u2) {
  TORCH_CHECK(X.dim() == 3 && u1.dim() == 2 && u2.dim() == 2 && u1.size(0) == u2.size(0) &&
                  u1.size(1) == X.size(1) && u2.size(1) == X.size(2),
              "apply_gates: expected X [N, n, d], u1 [P, n], u2 [P, d], but got ", X.sizes(), ", ",
              u1.sizes(), ", ", u2.sizes());
  return scores(X, u1.to(at::kDouble), u2.to(at::kDouble)).ge(0);
}

Gates sample_gates(const Tensor& X, int64_t P, int64_t seed, const std::string& dist,
                   bool include_open) {
  detail::check_features("sample_gates", X, 0);
  TORCH_CHECK_VALUE(P >= 1, "sample_gates: expected P >= 1, but got ", P);
  TORCH_CHECK_VALUE(dist == "gaussian" || dist == "simplex",
                    "sample_gates: expected dist one of gaussian, simplex, but got ", dist);
  auto generator = at::detail::createCPUGenerator(seed);
  const int64_t n = X.size(1), d = X.size(2);
  std::vector<Tensor> u1, u2, patterns;
  std::set<std::string> seen;
  const auto keep = [&](const Tensor& a, const Tensor& b, const Tensor& pattern) {
    if (!pattern.any().item<bool>() || !seen.insert(packed(pattern)).second) return;
    u1.push_back(a);
    u2.push_back(b);
    patterns.push_back(pattern);
  };
  const auto options = at::TensorOptions().dtype(at::kDouble);
  if (include_open)
    keep(at::zeros({n}, options), at::zeros({d}, options), at::zeros({X.size(0)}, options).ge(0));
  int64_t draws = 0;
  while (static_cast<int64_t>(u1.size()) < P && draws < 20 * P) {
    const int64_t batch = std::min(P, 20 * P - draws);
    auto a = at::randn({batch, n}, generator, options);
    const auto b = at::randn({batch, d}, generator, options);
    if (dist == "simplex") a = a.abs() / a.abs().sum(1, true);
    const auto open = apply_gates(X, a, b);
    for (int64_t j = 0; j < batch && static_cast<int64_t>(u1.size()) < P; ++j)
      keep(a[j], b[j], open.select(1, j));
    draws += batch;
  }
  if (static_cast<int64_t>(u1.size()) < P)
    TORCH_WARN("sample_gates: expected ", P, " distinct gates, but found ", u1.size(), " in ",
               draws, " draws");
  return {at::stack(u1), at::stack(u2), at::stack(patterns, 1)};
}

GateReport gate_report(const Tensor& X, const Tensor& Y, double beta, const ConvexResult& result,
                       const Tensor& pattern, const ConvexOptions& options) {
  auto program = options;
  program.classes = result.Z.dim() == 4 ? result.Z.size(1) : 0;
  const auto problem = detail::prepare("gate_report", X, Y, program);
  detail::check_beta("gate_report", beta);
  detail::check_state("gate_report", "Z", result.Z, problem);
  detail::check_gate("gate_report", X, pattern);
  const auto loss = problem.loss;
  const auto features = features_of(X, options);
  const auto lambda = result.multipliers, Z = result.Z.to(at::kDouble);
  const int64_t N = X.size(0), P = Z.size(0), c = Z.size(1);
  auto A = features.flatten(1).matmul(Z.reshape({P * c, -1}).t()).view({N, P, c});
  if (options.gate) A = A * options.gate->to(at::kDouble).unsqueeze(2);
  const auto R = residual(A.sum(1), Y, loss);
  const auto gram = features.permute({1, 2, 0}).matmul(features.permute({1, 0, 2}));
  const auto squares = at::linalg_eigvalsh(gram).amax(-1).clamp_min(1e-300);  // op_k^2, [n]
  const double mu = csrc::smoothness(loss);
  GateReport report;
  report.violation =
      over_gates(features, lambda, pattern, [](const Tensor& norms) { return norms.max(); });
  report.decrease = over_gates(features, R, pattern, [&](const Tensor& norms) {
    return ((norms - beta).clamp_min(0).square() / (2 * mu * squares)).max();
  });
  const auto scaled = [&](double violation) {
    return dual_value(lambda * std::min(1., violation > 0 ? beta / violation : 1.), Y,
                      options.loss);
  };
  report.bound = at::empty_like(report.violation);
  for (int64_t m = 0; m < pattern.size(1); ++m)
    report.bound[m] = scaled(report.violation[m].item<double>());
  const auto lengths = at::linalg_vector_norm(features, 2, {-1});  // [N, n]
  report.all_gates = scaled(lambda.abs().t().matmul(lengths).max().item<double>());
  return report;
}

ColumnGeneration solve_with_gates(const Tensor& X, const Tensor& Y, double beta, const Gates& start,
                                  ConvexOptions options, int64_t candidates, int64_t add,
                                  int64_t max_rounds, int64_t seed) {
  ColumnGeneration run = {.gates = start, .result = {}};
  const auto features = features_of(X, options);
  options.gate = start.pattern;
  run.result = solve(X, Y, beta, options);
  int64_t quiet = 0;
  while (quiet < 2 && run.rounds < max_rounds && run.result.status != "interrupted") {
    ++run.rounds;
    const auto drawn = sample_gates(features, candidates, seed + run.rounds, "gaussian", false);
    run.sampled += drawn.pattern.size(1);
    const auto report = gate_report(X, Y, beta, run.result, drawn.pattern, options);
    const auto above = report.violation.gt(beta * (1 + 1e-3)).sum().item<int64_t>();
    if (above == 0) {
      ++quiet;
      continue;
    }
    quiet = 0;
    const auto top = std::get<1>(report.violation.topk(std::min(add, above)));
    run.gates = {at::cat({run.gates.u1, drawn.u1.index_select(0, top)}),
                 at::cat({run.gates.u2, drawn.u2.index_select(0, top)}),
                 at::cat({run.gates.pattern, drawn.pattern.index_select(1, top)}, 1)};
    const auto Z = run.result.Z;
    auto sizes = Z.sizes().vec();
    sizes[0] = top.numel();
    options.Z0 = at::cat({Z, at::zeros(sizes, Z.options())});
    options.gate = run.gates.pattern;
    options.lip = 0;
    run.result = solve(X, Y, beta, options);
  }
  run.found_none = quiet >= 2;
  return run;
}

namespace {

std::tuple<Tensor, Tensor, Tensor> sample_boxed(const Tensor& X, int64_t P, int64_t seed,
                                                std::string_view dist, bool include_open) {
  const auto gates = sample_gates(X, P, seed, std::string(dist), include_open);
  return {gates.u1, gates.u2, gates.pattern};
}

std::tuple<Tensor, Tensor, Tensor, double> report_boxed(
    const Tensor& X, const Tensor& Y, double beta, const Tensor& Z, const Tensor& multipliers,
    const Tensor& pattern, std::string_view loss, const std::optional<Tensor>& gate,
    int64_t num_values) {
  ConvexOptions options;
  options.loss = loss;
  options.gate = gate;
  options.num_values = num_values;
  ConvexResult result;
  result.Z = Z;
  result.multipliers = multipliers;
  const auto report = gate_report(X, Y, beta, result, pattern, options);
  return {report.violation, report.decrease, report.bound, report.all_gates};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def(
      "_convex_sample_gates(Tensor X, int P, int seed, str dist, bool include_open) -> "
      "(Tensor u1, Tensor u2, Tensor pattern)");
  m.def("_convex_apply_gates(Tensor X, Tensor u1, Tensor u2) -> Tensor");
  m.def(
      "_convex_gate_report(Tensor X, Tensor Y, float beta, Tensor Z, Tensor multipliers, "
      "Tensor pattern, str loss, Tensor? gate, int num_values) -> "
      "(Tensor violation, Tensor decrease, Tensor bound, float all_gates)");
}
TORCH_LIBRARY_IMPL(kktorch, CompositeExplicitAutograd, m) {
  m.impl("_convex_sample_gates", &sample_boxed);
  m.impl("_convex_apply_gates", &apply_gates);
  m.impl("_convex_gate_report", &report_boxed);
}

}  // namespace kktorch
