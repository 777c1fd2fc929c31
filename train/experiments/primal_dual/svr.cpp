// svr: predictions of support vector regressions on the keys against softmax attention and
// Attention-BN.
//
//     K(x, y) = exp(x.y / sqrt(D)) / (h(x) h(y))        h(x) = sum_j exp(x.k_j / sqrt(D))
//     f(q) = sum_j c_j K(q, k_j) + b = softmax(q k^T / sqrt(D)) V + b        V_j = c_j / h(k_j)
//
// with c_j the dual coefficients of the key k_j, a regression per value channel. Keys and queries
// that were normalised before give Attention-BN of the raw ones.
#include <torch/torch.h>

#include <cmath>

#include "ops/attention_bn.h"
#include "train/common/error.h"
#include "train/experiments/context.h"
#include "train/experiments/primal_dual/epsilon_svr.h"
#include "train/experiments/primal_dual/experiments.h"
#include "train/experiments/primal_dual/retrieval_task.h"
#include "train/loop/seed_stream.h"

namespace kktorch::primal_dual {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr double kEps = 1e-5;

/// How keys and queries are normalised: ((x - beta mu) r), r = 1 without the standard deviation.
struct Variant {
  const char* title;
  double beta;
  bool use_std;
};
constexpr Variant kVariants[] = {{"softmax attention", 0, false},
                                 {"Attention-BN β=0.5, std", 0.5, true},
                                 {"Attention-BN β=1, std", 1, true},
                                 {"Attention-BN β=1, no std", 1, false}};

/// What is measured of a regression, all of it zero in exact arithmetic.
struct Measure {
  const char *name, *title;
};
constexpr Measure kMeasures[] = {{"formula", "SVR − softmax formula"},
                                 {"op", "SVR − attention_bn"},
                                 {"box", "box violation"},
                                 {"sum", "sum of dual"},
                                 {"kkt", "KKT violation"}};

ordered_json settings(Preset preset) {
  return {{"keys", 40},        {"queries", 16}, {"width", 6},
          {"value_width", 3},  {"box", 1e4},    {"tube", 0.05},
          {"tolerance", 1e-8}, {"eps", kEps},   {"seeds", by_preset(preset, 2, 10, 100)}};
}

at::Tensor similarity(const at::Tensor& x, const at::Tensor& y) {
  return (torch::matmul(x, y.t()) / std::sqrt(static_cast<double>(x.size(1)))).exp();
}

double largest(const at::Tensor& x) { return x.abs().max().item<double>(); }

struct Data {
  at::Tensor query, key, target;  // [M, D], [N, D], [N, Dv]
};

Data draw(const json& settings, uint64_t seed) {
  auto generator = generator_of(seed, "svr");
  const auto normal = [&](const char* rows, const char* columns) {
    return torch::randn({settings.at(rows).get<int64_t>(), settings.at(columns).get<int64_t>()},
                        generator, torch::kDouble);
  };
  return {normal("queries", "width"), normal("keys", "width"), normal("keys", "value_width")};
}

/// Attention-BN of raw queries and keys by the op.
at::Tensor attention(const Data& data, const at::Tensor& value, const Variant& variant) {
  const auto head = [](const at::Tensor& x) { return x.unsqueeze(0).unsqueeze(0); };
  return attention_bn(head(data.query), head(data.key), head(value), {}, {}, {}, {}, variant.beta,
                      variant.use_std, kEps)[0][0];
}

json measure(const Data& data, const Variant& variant, const SvrOptions& options) {
  const auto mean = data.key.mean(0);
  const auto root = variant.use_std ? ((data.key - mean).square().mean(0) + kEps).rsqrt()
                                    : torch::ones_like(mean);
  const auto q = (data.query - variant.beta * mean) * root;
  const auto k = (data.key - variant.beta * mean) * root;
  const auto of_keys = similarity(k, k), of_queries = similarity(q, k);
  const auto h_keys = of_keys.sum(1), h_queries = of_queries.sum(1);
  const auto gram = of_keys / (h_keys.unsqueeze(1) * h_keys);
  const auto cross = of_queries / (h_queries.unsqueeze(1) * h_keys);

  std::vector<at::Tensor> dual, predictions;
  std::vector<double> bias;
  double kkt = 0;
  for (int64_t e = 0; e < data.target.size(1); ++e) {
    const auto solution = solve_svr(gram, data.target.select(1, e), cross, options);
    kkt = std::max(kkt, svr_kkt_violation(gram, data.target.select(1, e), solution, options));
    dual.push_back(solution.dual);
    predictions.push_back(solution.predictions);
    bias.push_back(solution.bias);
  }
  const auto c = torch::stack(dual, 1), f = torch::stack(predictions, 1);  // [N, Dv], [M, Dv]
  const auto b = torch::tensor(bias, torch::kDouble);
  const auto value = c / h_keys.unsqueeze(1);
  const auto formula = torch::matmul(of_queries / h_queries.unsqueeze(1), value) + b;
  // Divided as the value is: a coefficient on the box stays on it.
  const auto box = (torch::full_like(h_keys, options.box) / h_keys).unsqueeze(1);
  return {{"formula", largest(f - formula)},
          {"op", largest(f - (attention(data, value, variant) + b))},
          {"box", (value.abs() - box).clamp_min(0).max().item<double>()},
          {"sum", largest(c.sum(0))},
          {"kkt", kkt}};
}

std::vector<std::string> measure_columns(const char* first) {
  std::vector<std::string> columns = {first};
  for (const auto& [name, title] : kMeasures) columns.emplace_back(title);
  return columns;
}

/// A row of the largest of each measure over `results`.
std::vector<Cell> largest_row(const std::string& name, const std::vector<json>& results) {
  std::vector<Cell> row = {name};
  for (const auto& [key, title] : kMeasures) {
    std::vector<double> values;
    for (const auto& result : results) values.push_back(result.at(key).get<double>());
    row.push_back(largest_cell(values, "{:.1e}"));
  }
  return row;
}

std::vector<ResultTable> run(Context& context) {
  const json settings = context.settings();
  const SvrOptions options{.box = settings.at("box"),
                           .tube = settings.at("tube"),
                           .tolerance = settings.at("tolerance")};
  std::vector<std::vector<json>> by_variant(std::size(kVariants));
  std::vector<std::vector<Cell>> variant_rows, seed_rows;
  for (const auto seed : context.seeds()) {
    const auto found = context.part(fmt::format("seed{}", seed), [&](const auto&) {
      json results;
      for (const auto& variant : kVariants)
        results.push_back(measure(draw(settings, seed), variant, options));
      return results;
    });
    for (size_t v = 0; v < found.size(); ++v) by_variant[v].push_back(found[v]);
    seed_rows.push_back(largest_row(std::to_string(seed), found));
  }
  for (size_t v = 0; v < by_variant.size(); ++v)
    variant_rows.push_back(largest_row(kVariants[v].title, by_variant[v]));
  return {{.title = "Largest absolute value over seeds, queries and channels, by normalisation",
           .columns = measure_columns("regression on inputs of"),
           .rows = variant_rows,
           .note = "Predictions by LIBSVM; V = dual / h(key). Expected: differences at most 1e-9, "
                   "no box violation, sum of dual at most 1e-6. The KKT violation is recomputed "
                   "without the solver, whose kernel cache is float32.",
           .figure = Figure{.axis = "largest absolute value (bar: over seeds)",
                            .across = "quantity",
                            .logarithmic = true}},
          {.title = "Largest absolute value over normalisations, queries and channels, by seed",
           .columns = measure_columns("seed"),
           .rows = seed_rows,
           .note = "",
           .figure = {}}};
}

}  // namespace

Experiment svr() {
  return {
      .paper = kPaper,
      .name = "svr",
      .title = "Attention as the dual form of support vector regression",
      .claim =
          "The paper derives softmax attention as the dual form of a support vector regression on "
          "the keys, and Attention-BN by normalising the regression's inputs; checked here: "
          "predictions of regressions solved by LIBSVM equal softmax attention and attention_bn "
          "with the dual coefficients as values, plus the bias.",
      .limits =
          "that a trained transformer solves such a regression. The duality fixes the form of the "
          "layer; in training there are no targets, no problem is solved, and the box and the "
          "constraint that belongs to the bias are dropped. Primal-Attention (Chen et al., NeurIPS "
          "2023) raises this objection, and that attention kernels are asymmetric. The targets "
          "here are random numbers of ours.",
      .times = {"1 s", "1 s", "2 s"},
      .settings = settings,
      .run = run};
}

}  // namespace kktorch::primal_dual
