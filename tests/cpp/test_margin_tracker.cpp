// The margin tracker along runs of gradient descent: its brackets, its multipliers, its fields and
// its errors; and the model that it watches.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <string>

#include "models/att_svm_model.h"
#include "ops/attn_dual.h"
#include "ops/attn_margin.h"
#include "ops/svm/margin_tracker.h"
#include "ops/svm_solve.h"
#include "tests/cpp/model_testing.h"

namespace kktorch {
namespace {

using namespace testing_models;  // NOLINT
using torch::Tensor;

/// n inputs of T tokens, all of norm 1.
AttSvmSets unit_sets(int64_t n, int64_t T, int64_t dx, int64_t dz) {
  const auto unit = [](const Tensor& t) { return t / t.norm(2, -1, true); };
  return {.x = unit(random({n * T, dx})),
          .z = unit(random({n, dz})),
          .row_ptr = torch::arange(n + 1) * T,
          .tok = {}};
}

MarginTrackerOptions data_of(const AttSvmSets& sets) {
  return {.x = sets.x, .z = sets.z, .row_ptr = sets.row_ptr};
}

/// Margins of W for alpha by the definition; +inf at alpha.
Tensor margins(const AttSvmSets& sets, const Tensor& W, const Tensor& alpha) {
  const int64_t n = sets.z.size(0);
  const auto X = sets.x.view({n, -1, sets.x.size(1)});
  const auto logits = torch::einsum("ntd,de,ne->nt", {X, W, sets.z});
  const auto chosen = logits.gather(1, alpha.unsqueeze(1));
  return (chosen - logits).scatter(1, alpha.unsqueeze(1), INFINITY);
}

// ---- the model

TEST(AttSvmModel, ItsClosedFormIsItsAutograd) {
  torch::manual_seed(0);
  for (const int64_t m : {0, 3})
    for (const auto* head : {"linear", "relu", "quad"})
      for (const auto* loss : {"logistic", "exponential", "linear"}) {
        const auto sets = unit_sets(4, 5, 3, 2);
        AttSvmModel model(AttSvmModelOptions{
            .dx = 3, .dz = 2, .m = m, .head = head, .units = 4, .lbd = 0.2, .loss = loss});
        model->to(torch::kDouble);
        const auto labels = torch::tensor({1.0, -1.0, 1.0, -1.0}, torch::kDouble);
        const auto risk = model->risk(sets, labels);
        risk.backward();
        const auto found = model->analytic_grad(sets, labels);
        EXPECT_NEAR(found.risk, risk.item<double>(), 1e-13);
        expect_close(found.s, model->probabilities(sets), 1e-13);
        expect_close(found.f, model->forward(sets.x, sets.z, sets.row_ptr), 1e-13);
        for (const auto& [closed, parameter] :
             {std::pair{found.dW, model->W}, {found.dK, model->K}, {found.dQ, model->Q}}) {
          ASSERT_EQ(closed.defined(), parameter.defined());
          if (!closed.defined()) continue;
          const auto error = (closed - parameter.grad()).norm() / parameter.grad().norm();
          EXPECT_LT(error.item<double>(), 1e-9);
        }
      }
}

TEST(AttSvmModel, CausalSetsAreTheProblemsOfThePrefixes) {
  torch::manual_seed(1);
  AttSvmModel model(AttSvmModelOptions{.dx = 3});
  model->to(torch::kDouble);
  const auto X = random({4, 3});
  const auto tok = torch::tensor({0, 0, 1, 0, 1, 2, 0, 1, 2, 3});
  const AttSvmSets causal{X, X, torch::tensor({0, 1, 3, 6, 10}), tok};
  const auto labels = torch::tensor({1.0, -1.0, -1.0, 1.0}, torch::kDouble);
  const auto together = model->analytic_grad(causal, labels, /*inputs=*/1);
  double risk = 0;
  auto dW = torch::zeros({3, 3}, torch::kDouble);
  for (int64_t k = 0; k < 4; ++k) {
    const AttSvmSets prefix{
        X.slice(0, 0, k + 1), X.slice(0, k, k + 1), torch::tensor({0L, k + 1}), {}};
    const auto alone = model->analytic_grad(prefix, labels.slice(0, k, k + 1));
    risk += alone.risk;
    dW += alone.dW;
    expect_close(together.f.slice(0, k, k + 1), alone.f, 1e-14);
  }
  EXPECT_NEAR(together.risk, risk, 1e-13);
  expect_close(together.dW, dW, 1e-14);
}

TEST(AttSvmModel, RefusesOptionsAndLabels) {
  expect_error([] { AttSvmModel model(AttSvmModelOptions{}); }, "expected dx >= 1, but got 0");
  expect_error([] { AttSvmModel model(AttSvmModelOptions{.dx = 2, .head = "cubic"}); },
               "AttSvmModel: expected head in {linear, relu, quad}, but got 'cubic'");
  expect_error([] { AttSvmModel model(AttSvmModelOptions{.dx = 2, .loss = "hinge"}); },
               "expected loss in {logistic, exponential, linear}, but got 'hinge'");
  expect_error([] { AttSvmModel model(AttSvmModelOptions{.dx = 2, .m = -1}); },
               "expected m >= 0, but got -1");
  AttSvmModel model(AttSvmModelOptions{.dx = 2});
  const auto sets = unit_sets(2, 2, 2, 2);
  expect_error(
      [&] {
        model->analytic_grad(sets, torch::tensor({1.0, 0.0}));
      },
      "AttSvmModel: expected labels +1 or -1, but got 0 at 1");
  expect_error([&] { model->risk(sets, torch::ones({3})); }, "expected labels [2], but got [3]");
}

TEST(AttSvmModel, NamesWhatIsNotFinite) {
  const auto labels = torch::tensor({1.0, -1.0}, torch::kDouble);
  for (const std::string name : {"x", "z", "W", "K", "Q", "v"}) {
    auto sets = unit_sets(2, 3, 4, 4);
    AttSvmModel model(AttSvmModelOptions{.dx = 4, .m = name == "K" || name == "Q" ? 2 : 0});
    model->to(torch::kDouble);
    const bool given = name == "x" || name == "z";
    auto target = given         ? (name == "x" ? sets.x : sets.z)
                  : name == "v" ? model->v
                                : model->named_parameters()[name].detach();
    target.view(-1)[1] = name == "z" ? INFINITY : NAN;
    expect_error([&] { model->analytic_grad(sets, labels); },
                 "AttSvmModel: expected finite " + name + ", but got NaN or Inf at " +
                     (name == "v" ? "[1]" : "[0, 1]"));
  }
}

// ---- the tracker

struct Training {
  AttSvmSets sets;
  Tensor labels;
  AttSvmModel model;

  explicit Training(int64_t m, uint64_t seed = 3)
      : sets(unit_sets(5, 4, 6, 6)),
        labels(torch::tensor({1.0, -1.0, 1.0, 1.0, -1.0}, torch::kDouble)),
        model(AttSvmModelOptions{.dx = 6, .m = m}) {
    torch::manual_seed(seed);
    model->to(torch::kDouble);
  }

  /// The gradient, and a step of normalised descent.
  AttSvmGradient descend(double lr = 0.1) {
    auto gradient = model->analytic_grad(sets, labels);
    torch::NoGradGuard no_grad;
    for (auto [parameter, g] :
         {std::pair{model->W, gradient.dW}, {model->K, gradient.dK}, {model->Q, gradient.dQ}})
      if (parameter.defined()) parameter -= lr * g / (g.norm() + 2.220446049250313e-16);
    return gradient;
  }

  MarginStep step(const AttSvmGradient& gradient) const {
    MarginStep step{.dlogits = gradient.dlogits, .score = gradient.score};
    if (model->W.defined())
      step.W = model->W.detach().clone();
    else
      step.K = model->K.detach().clone(), step.Q = model->Q.detach().clone();
    return step;
  }
};

TEST(MarginTracker, TheSumOfMultipliersIsTheWayThatDescentWent) {
  Training run(0);
  MarginTracker tracker(data_of(run.sets));
  const auto start = run.model->W.detach().clone();
  for (int k = 0; k < 200; ++k) {
    const auto step = run.step(run.model->analytic_grad(run.sets, run.labels));
    tracker.step(step);
    run.descend();
    if (k % 50 != 0) continue;
    const auto moved = run.model->W.detach() - start;
    for (const int64_t a : {0, 3}) {  // of any selection
      const auto alpha = torch::full({5}, a, torch::kLong);
      const auto [plus, m1] =
          attn_dual(run.sets.x, run.sets.z, run.sets.row_ptr, alpha, tracker.path());
      const auto [minus, m2] =
          attn_dual(run.sets.x, run.sets.z, run.sets.row_ptr, alpha, -tracker.path());
      expect_close(0.1 * (plus - minus) / moved.norm(), moved / moved.norm(), 1e-12);
    }
  }
}

TEST(MarginTracker, BracketsHoldEveryWeightAndEveryMultiplier) {
  for (const int64_t m : {0, 4}) {
    Training run(m, 5 + m);
    MarginTracker tracker(data_of(run.sets));
    MarginRecord last;
    std::vector<MarginRecord> records;
    for (int k = 0; k < 400; ++k) {
      const auto step = run.step(run.model->analytic_grad(run.sets, run.labels));
      records.push_back(tracker.step(step));
      run.descend();
    }
    // Any two steps with one selection: every lower bound below every upper bound.
    for (const auto& a : records)
      for (const auto& b : records)
        if (a.hash == b.hash) {
          EXPECT_LE(a.lower, b.upper);
          EXPECT_LE(a.lower_nuclear, b.upper_nuclear);
        }
    const auto& r = records.back();
    EXPECT_EQ(r.state, 1);
    const auto W = run.model->merged().detach();
    EXPECT_GT(r.lower, 0);
    EXPECT_NEAR(r.cos_certified, r.lower / r.upper, 1e-15);
    EXPECT_LT(r.slack, 1e-10);
    if (m > 0) {
      EXPECT_GE(r.balance, -1e-9);
    }
  }
}

TEST(MarginTracker, FieldsAreThoseOfTheDefinitions) {
  Training run(3);
  MarginTracker tracker(data_of(run.sets));
  const auto gradient = run.model->analytic_grad(run.sets, run.labels);
  auto step = run.step(gradient);
  step.loss = gradient.risk;
  step.loss_star = 0.1;
  const auto r = tracker.step(step);
  const auto W = run.model->merged().detach();
  const auto s = gradient.s.view({5, 4});
  const auto alpha = s.argmax(1);
  EXPECT_TRUE(torch::equal(r.alpha, alpha));
  const auto margin = margins(run.sets, W, alpha);
  expect_close(r.margin, margin.amin(1), 1e-13);
  EXPECT_NEAR(r.min_margin, margin.min().item<double>(), 1e-13);
  EXPECT_NEAR(r.lower, margin.min().item<double>() / W.norm().item<double>(), 1e-12);
  EXPECT_NEAR(r.probability_mean, s.amax(1).mean().item<double>(), 1e-13);
  EXPECT_NEAR(r.probability_min, s.amax(1).min().item<double>(), 1e-13);
  EXPECT_NEAR(r.entropy, -(s * s.log()).sum(1).mean().item<double>(), 1e-13);
  EXPECT_NEAR(r.participation, s.square().sum(1).reciprocal().mean().item<double>(), 1e-12);
  EXPECT_EQ(r.kept, (s > 1e-3).sum().item<double>() / 5);
  EXPECT_EQ(r.ambiguous, (s <= 1e-3).logical_and(s > 1e-6).sum().item<double>());
  const auto near = margin <= 1.01 * margin.amin(1, true);
  EXPECT_EQ(r.support, near.sum().item<double>() / 5);
  EXPECT_NEAR(r.norm, W.norm().item<double>(), 1e-13);
  const auto singular = std::get<1>(torch::linalg_svd(W, false));
  EXPECT_NEAR(r.norm_nuclear, singular.sum().item<double>(), 1e-12);
  EXPECT_NEAR(r.stable_rank,
              singular.square().sum().item<double>() / singular.square().max().item<double>(),
              1e-12);
  const auto norms = run.model->K.square().sum() + run.model->Q.square().sum();
  EXPECT_NEAR(r.balance, norms.item<double>() / 2 - singular.sum().item<double>(), 1e-12);
  const auto score = gradient.score.view({5, 4});
  const auto regret = score.amax(1) - score.gather(1, alpha.unsqueeze(1)).squeeze(1);
  EXPECT_NEAR(r.regret_max, regret.max().item<double>(), 1e-14);
  EXPECT_NEAR(r.excess_loss, gradient.risk - 0.1, 1e-15);
  const auto lam = gradient.dlogits.view({5, 4}).scatter(1, alpha.unsqueeze(1), 0).clamp_min(0);
  EXPECT_NEAR(r.mass, lam.sum().item<double>(), 1e-15);
  EXPECT_EQ(r.ties, 0);
  EXPECT_EQ(r.vanished, 0);
  EXPECT_EQ(r.fields().size(), 36U);
}

TEST(MarginTracker, AChangeOfTheSelectionIsCountedAndNeedsNoReset) {
  Training run(0);
  MarginTracker tracker(data_of(run.sets));
  auto step = run.step(run.model->analytic_grad(run.sets, run.labels));
  const auto first = tracker.step(step);
  EXPECT_EQ(tracker.step(step).stable, 1);
  step.W = -*step.W;
  const auto turned = tracker.step(step);
  EXPECT_EQ(turned.changes, 1);
  EXPECT_EQ(turned.stable, 0);
  EXPECT_NE(turned.hash, first.hash);
  // The upper bound of the new selection, from the sum over all steps, is one for it.
  EXPECT_LE(turned.lower, turned.upper);
  step.W = -*step.W;
  EXPECT_EQ(tracker.step(step).hash, first.hash);
}

TEST(MarginTracker, MultipliersOfAFewQueriesBoundTheWholeSet) {
  Training run(0);
  for (int k = 0; k < 300; ++k) run.descend();
  const auto gradient = run.model->analytic_grad(run.sets, run.labels);
  MarginTracker whole(data_of(run.sets)), part(data_of(run.sets));
  auto step = run.step(gradient);
  const auto all = whole.step(step);
  step.queries = torch::tensor({1, 3});
  step.dlogits = torch::cat({gradient.dlogits.slice(0, 4, 8), gradient.dlogits.slice(0, 12, 16)});
  const auto some = part.step(step);
  const auto solution = att_svm({run.sets.x, run.sets.z, run.sets.row_ptr, {}}, all.alpha);
  EXPECT_GE(some.upper, solution.certificate.lower);  // the margin of the whole set
  EXPECT_GE(all.upper, solution.certificate.lower);
  EXPECT_EQ(some.lower, all.lower);
  EXPECT_LT(some.mass, all.mass);
}

TEST(MarginTracker, SelectionsThatAreGivenOrBest) {
  Training run(0);
  const auto gradient = run.model->analytic_grad(run.sets, run.labels);
  auto options = data_of(run.sets);
  options.optimal = true;
  const auto best = MarginTracker(options).step(run.step(gradient));
  EXPECT_TRUE(torch::equal(best.alpha, gradient.score.view({5, 4}).argmax(1)));
  EXPECT_EQ(best.regret_max, 0);
  EXPECT_EQ(best.ties, 0);
  auto equal = run.step(gradient);
  equal.score = torch::cat({torch::ones({8}, torch::kDouble), gradient.score.slice(0, 8)});
  const auto tied = MarginTracker(options).step(equal);
  EXPECT_EQ(tied.ties, 2);
  EXPECT_EQ(tied.alpha[1].item<int64_t>(), 0);  // the first of equal scores
  options.optimal = false;
  options.alpha = torch::tensor({3, 2, 1, 0, 3});
  const auto fixed = MarginTracker(options).step(run.step(gradient));
  expect_close(fixed.margin, margins(run.sets, run.model->W.detach(), *options.alpha).amin(1));
  EXPECT_NEAR(fixed.probability_mean, best.probability_mean, 1e-15);
  EXPECT_EQ(fixed.ties, 0);
}

TEST(MarginTracker, SeveralSelectedTokensAreMeasuredInTheSpaceThatCanGrow) {
  Training run(0);
  auto options = data_of(run.sets);
  options.selected = torch::zeros({20}, torch::kBool);
  for (const int64_t k : {0, 2, 5, 8, 9, 12, 17}) (*options.selected)[k] = true;
  const auto gradient = run.model->analytic_grad(run.sets, run.labels);
  const auto r = MarginTracker(options).step(run.step(gradient));
  // S_fin is spanned by (x_0 - x_2) z_0^T and (x_8 - x_9) z_2^T.
  const auto x = run.sets.x, z = run.sets.z;
  const auto basis = torch::stack(
      {torch::outer(x[0] - x[2], z[0]).flatten(), torch::outer(x[8] - x[9], z[2]).flatten()}, 1);
  const auto orthogonal = std::get<0>(torch::linalg_qr(basis));
  const auto flat = run.model->W.detach().flatten();
  const auto rest = (flat - orthogonal.matmul(orthogonal.t().matmul(flat))).view({6, 6});
  EXPECT_NEAR(r.norm, rest.norm().item<double>(), 1e-12);
  auto margin = margins(run.sets, rest, torch::tensor({0, 1, 0, 0, 1}));
  margin = margin.masked_fill(options.selected->view({5, 4}), INFINITY);
  expect_close(r.margin, margin.amin(1), 1e-12);
  EXPECT_TRUE(std::isnan(r.lower_nuclear));
  EXPECT_GE(r.upper, r.lower);
}

TEST(MarginTracker, DegenerateSets) {
  // Single tokens have no margin; equal tokens tie; one query, dz = 1.
  const AttSvmSets single{random({3, 2}), random({3, 1}), torch::arange(4), {}};
  const auto r = MarginTracker(data_of(single)).step({.W = random({2, 1})});
  EXPECT_EQ(r.min_margin, INFINITY);
  EXPECT_EQ(r.lower, INFINITY);
  EXPECT_TRUE(std::isnan(r.upper));
  const AttSvmSets equal{
      torch::ones({3, 2}, torch::kDouble), random({1, 1}), torch::tensor({0, 3}), {}};
  const auto tied = MarginTracker(data_of(equal)).step({.W = random({2, 1})});
  EXPECT_EQ(tied.ties, 1);
  EXPECT_EQ(tied.min_margin, 0);
  EXPECT_LE(tied.lower, 0);
  // Multipliers of equal tokens: no W separates them.
  MarginTracker tracker(data_of(equal));
  const auto infeasible = tracker.step(
      {.W = random({2, 1}), .dlogits = torch::tensor({-1.0, 0.5, 0.5}, torch::kDouble)});
  EXPECT_EQ(infeasible.upper, 0);
  EXPECT_EQ(infeasible.state, 2);
}

TEST(MarginTracker, GoesOnWhereItsStateWasTaken) {
  for (const bool several : {false, true}) {
    Training run(0);
    auto options = data_of(run.sets);
    options.solve_after = 5;
    if (several) {
      options.selected = torch::zeros({20}, torch::kBool);
      for (const int64_t k : {0, 2, 5, 8, 12, 17}) (*options.selected)[k] = true;
    }
    MarginTracker whole(options);
    const auto next = [&] {
      auto step = run.step(run.model->analytic_grad(run.sets, run.labels));
      run.descend();
      return step;
    };
    for (int k = 0; k < 300; ++k) whole.step(next());
    MarginTracker resumed(options);
    resumed.load_state(whole.state());
    for (int k = 0; k < 3; ++k) {
      const auto step = next();
      const auto a = whole.step(step), b = resumed.step(step);
      EXPECT_FALSE(std::isnan(a.cos_frobenius));  // the solution is part of the state
      for (size_t i = 0; i < a.fields().size(); ++i) {
        const auto& [name, value] = a.fields()[i];
        const double again = b.fields()[i].second;
        EXPECT_TRUE(value == again || (std::isnan(value) && std::isnan(again))) << name;
      }
      EXPECT_EQ(a.hash, b.hash);
    }
    MarginTracker other(data_of(unit_sets(5, 3, 6, 6)));
    expect_error([&] { other.load_state(whole.state()); },
                 "margin_tracker: expected the state of these token sets, but got another path");
    expect_error([&] { other.load_state({}); }, "but got none path");
  }
}

TEST(MarginTracker, Errors) {
  const auto sets = unit_sets(3, 2, 4, 5);
  const auto with = [&](auto change) {
    auto options = data_of(sets);
    change(options);
    MarginTracker tracker(options);
  };
  expect_error([&] { with([](auto& o) {
                       o.z = torch::zeros({2, 5});
                     }); },
               "margin_tracker: expected z floating [3, dz], but got Float [2, 5]");
  expect_error([&] { with([](auto& o) {
                       o.alpha = torch::tensor({0, 1, 2});
                     }); },
               "margin_tracker: expected alpha in 0 ... 1 for query 2, but got 2");
  expect_error([&] { with([](auto& o) { o.selected = torch::zeros({6}, torch::kBool); }); },
               "expected a selected token in every set, but got none in query 0");
  expect_error([&] { with([](auto& o) { o.selected = torch::zeros({5}, torch::kBool); }); },
               "expected selected bool [6], but got Bool [5]");
  expect_error([&] { with([](auto& o) {
                       o.alpha = torch::tensor({0, 1, 1}), o.optimal = true;
                     }); },
               "expected one of alpha, selected and optimal, but got several");
  expect_error([&] { with([](auto& o) {
                       o.row_ptr = torch::tensor({0, 2, 2, 6});
                     }); },
               "margin_tracker: expected sets of at least one token");

  MarginTracker tracker(data_of(sets));
  const auto W = random({4, 5});
  expect_error([&] { tracker.step({}); }, "expected W or K and Q, but got neither");
  expect_error([&] { tracker.step({.W = W, .K = W}); }, "expected W or K and Q, but got both");
  expect_error([&] { tracker.step({.W = W.t()}); }, "expected W [4, 5], but got [5, 4]");
  expect_error(
      [&] {
        tracker.step({.K = random({4, 2}), .Q = random({4, 2})});
      },
      "expected K [4, m] and Q [5, m], but got [4, 2] and [4, 2]");
  expect_error([&] { tracker.step({.W = W, .dlogits = random({5})}); },
               "expected dlogits floating [6], but got Double [5]");
  expect_error([&] { tracker.step({.W = W, .queries = torch::tensor({0})}); },
               "expected dlogits with queries, but got none");
  expect_error(
      [&] { tracker.step({.W = W, .dlogits = random({2}), .queries = torch::tensor({3})}); },
      "expected queries int64 in 0 ... 2, but got Long [1]");
  expect_error([&] { tracker.step({.W = W, .score = random({5})}); },
               "expected score floating [6], but got Double [5]");
  expect_error([&] { tracker.step({.W = W, .scale = -1}); }, "expected a finite scale > 0");
  auto bad = W.clone();
  bad[0][0] = NAN;
  const auto narrow = random({4, 2}), other = random({5, 2});
  for (const auto& step : {MarginStep{.W = bad}, MarginStep{.K = narrow / 0, .Q = other},
                           MarginStep{.K = narrow, .Q = other * NAN}})
    expect_error([&] { tracker.step(step); },
                 "margin_tracker: expected finite logits, but got NaN or Inf in query 0");
  auto best = data_of(sets);
  best.optimal = true;
  expect_error([&] { MarginTracker(best).step({.W = W}); },
               "expected score for the optimal selection, but got none");
  EXPECT_EQ(tracker.step({.W = W}).step, 0) << "errors leave the tracker as it was";
}

}  // namespace
}  // namespace kktorch
