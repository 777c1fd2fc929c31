// Modules of convex attention: definitions, projection, balancing, gates; column generation.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/convex_attention.h"
#include "ops/convex_gates.h"

namespace kktorch {
namespace {

double distance(const torch::Tensor& a, const torch::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(ConvexModules, PooledAttentionIsItsDefinition) {
  torch::manual_seed(0);
  for (const int64_t gates : {0, 3}) {
    ConvexAttention module(5, 4, 2, 7, gates);
    const auto X = torch::randn({6, 5, 4});
    auto S = torch::einsum("jk,ikq,jq->ij", {module->w1, X, module->w2});
    if (gates > 0) {
      const auto open = torch::einsum("pk,ikq,pq->ip", {module->u1, X, module->u2}).ge(0);
      EXPECT_TRUE(open.select(1, 0).all().item<bool>());
      S = S * open.index_select(1, module->gate_id);
    }
    EXPECT_LE(distance(module->forward(X), S.matmul(module->w3)), 1e-5);
  }
}

TEST(ConvexModules, ProjectionAndBalancingKeepWhatTheyShould) {
  torch::manual_seed(0);
  ConvexAttention module(5, 4, 2, 7);
  const auto X = torch::randn({6, 5, 4});
  const auto before = module->forward(X).detach();
  const double penalty = module->penalty().item<double>();
  module->balance();
  EXPECT_LE(distance(module->forward(X), before), 1e-5);
  EXPECT_LE(module->penalty().item<double>(), penalty);
  EXPECT_LE(distance(module->w2.norm(2, {1}), module->w3.abs().sum(1)), 1e-5);
  {
    const torch::NoGradGuard no_grad;
    module->w1.add_(torch::randn({7, 5}));
    module->w3[0].zero_();
  }
  module->project();
  EXPECT_LE(distance(module->w1.sum(1), torch::ones({7})), 1e-5);
  module->balance();
  EXPECT_EQ(module->w2[0].abs().max().item<double>(), 0);
}

TEST(ConvexModules, RowsOutsideOfTheSimplexAreRefused) {
  ConvexAttention pooled(5, 4, 2, 7);
  ConvexAttentionSeq sequence(5, 4, 2, 3);
  const auto X = torch::randn({6, 5, 4});
  {
    const torch::NoGradGuard no_grad;
    pooled->w1[1].add_(0.1);
    sequence->W1[2][0].neg_();
  }
  EXPECT_THROW(pooled->forward(X), c10::ValueError);
  EXPECT_THROW(sequence->forward(X), c10::ValueError);
}

/// Column generation: more gates lower the optimum, and the verdict is checked on new candidates.
TEST(ConvexGates, ColumnGenerationLowersTheOptimumAndSaysWhenItFindsNone) {
  torch::manual_seed(0);
  const auto X = torch::randn({40, 3, 2}, torch::kDouble);
  const auto Y = (X.select(1, 0).sum(1) * X.select(1, 1).sum(1)).relu().unsqueeze(1);
  const auto start = sample_gates(X, 1, 1);
  ConvexOptions options;
  options.tol_rel = 1e-9;
  options.gate = start.pattern;
  const double beta = 0.2 * beta_max(X, Y, options);
  const auto before = solve(X, Y, beta, options);
  const auto run = solve_with_gates(X, Y, beta, start, options, 50, 4, 40, 7);
  EXPECT_LT(run.result.F, before.F);
  EXPECT_GT(run.gates.pattern.size(1), 1);
  EXPECT_EQ(run.gates.pattern.size(1), run.result.Z.size(0));
  EXPECT_LE(run.sampled, 50 * run.rounds);
  EXPECT_TRUE(run.gates.pattern.equal(apply_gates(X, run.gates.u1, run.gates.u2)));
  options.gate = run.gates.pattern;
  const auto again = certify(X, Y, beta, run.result.Z, options);
  EXPECT_NEAR(again.F, run.result.F, 1e-10 * again.F);
  // No round of an unlimited run is left with a violation among its candidates.
  EXPECT_TRUE(run.found_none);
  const auto last = sample_gates(X, 50, 7 + run.rounds, "gaussian", false);
  const auto report = gate_report(X, Y, beta, run.result, last.pattern, options);
  EXPECT_LE(report.violation.max().item<double>(), beta * (1 + 1e-3));
  EXPECT_LE(report.all_gates, run.result.F);
  const auto none = solve_with_gates(X, Y, beta, start, options, 50, 4, 0, 7);
  EXPECT_FALSE(none.found_none);
}

TEST(ConvexModules, SequenceAndSoftmaxAttentionAreTheirDefinitions) {
  torch::manual_seed(0);
  const auto X = torch::randn({6, 5, 4});
  ConvexAttentionSeq sequence(5, 4, 2, 3);
  EXPECT_LE(
      distance(sequence->forward(X),
               torch::einsum("j,jrk,ikq,jql->irl", {sequence->w3, sequence->W1, X, sequence->W2})),
      1e-5);
  SoftmaxAttention softmax(4, 2, 3, 5, 0.7, 1);
  const auto padding = torch::arange(5).expand({6, 5}).ge(4);
  auto logits =
      0.7 * torch::einsum("iq,hqe,hpe,ikp->ihk", {X.select(1, 1), softmax->Q, softmax->K, X});
  logits = logits.masked_fill(padding.unsqueeze(1), -INFINITY);
  const auto expected =
      torch::einsum("ihk,ikq,hqe,hel->il", {logits.softmax(-1), X, softmax->V, softmax->O});
  EXPECT_LE(distance(softmax->forward(X, padding), expected), 1e-5);
}

}  // namespace
}  // namespace kktorch
