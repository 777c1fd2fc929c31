// What both papers on training dynamics share, and the shallow transformer: descent, exponents,
// kernels, teacher, linearised model, bounds, autoregressive data.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <filesystem>

#include "ops/shk.h"
#include "tests/cpp/allocations.h"
#include "tests/cpp/refusal.h"
#include "train/common/error.h"
#include "train/dynamics/ar_data.h"
#include "train/dynamics/descent.h"
#include "train/dynamics/invariants.h"
#include "train/dynamics/lanczos.h"
#include "train/dynamics/margin.h"
#include "train/dynamics/ntk.h"
#include "train/dynamics/shallow.h"
#include "train/loop/seed_stream.h"
#include "train/loop/slope.h"
#include "train/loop/trials.h"

namespace kktorch::dynamics {
namespace {

using at::Tensor;

double number(const Tensor& t) { return t.item<double>(); }
double largest(const Tensor& t) { return number(t.abs().max()); }

// ---- shared pieces

TEST(PowerLaw, IsFoundAndItsErrorsAreNamed) {
  const std::vector<double> x = {1, 2, 4, 8};
  std::vector<std::vector<double>> values;
  for (const double scale : {1.0, 2.0, 3.0, 4.0, 5.0}) {
    auto& trial = values.emplace_back();
    for (const double at : x) trial.push_back(scale * std::pow(at, -0.5));
  }
  const auto law = fit_power_law(x, values, 1);
  EXPECT_NEAR(law.slope, -0.5, 1e-12);
  EXPECT_NEAR(law.bootstrap.low, -0.5, 1e-12);
  EXPECT_NEAR(law.per_trial.high, -0.5, 1e-9);
  EXPECT_NEAR(law.r_squared, 1, 1e-12);
  EXPECT_TRUE(law.reliable());
  EXPECT_FALSE(fit_power_law(x, {values[0], values[1]}, 1).reliable());
  EXPECT_REFUSED(fit_power_law({{1.0, 2.0}}, {{1, 2}}, 1), "expected three points or more");
  values[1][2] = -3;
  EXPECT_REFUSED(fit_power_law(x, values, 1), "expected positive numbers, but got -3");
}

TEST(Trials, RunOnceEachAndThrowTheFirstError) {
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    std::vector<int> calls(20);
    run_trials(20, [&](int64_t i) {
      EXPECT_EQ(at::get_num_threads(), 1);
      ++calls[i];
    });
    EXPECT_EQ(calls, std::vector<int>(20, 1));
    EXPECT_EQ(at::get_num_threads(), threads);
    EXPECT_THROW(run_trials(5,
                            [](int64_t i) {
                              if (i == 3) throw UserError("no");
                            }),
                 UserError);
  }
}

TEST(Invariants, NameWhatIsViolated) {
  Invariants strict(InvariantMode::kError, 1e-9);
  strict.at_most("X", 3, 1, 1);
  EXPECT_REFUSED(strict.at_most("X", 3, 2, 1),
                 "KKT_INVARIANT: X at step 3: expected at most 1, but got 2");
  EXPECT_REFUSED(strict.at_most("X", 4, std::nan(""), 1), "but got nan");
  Invariants off(InvariantMode::kOff, 1e-9);
  off.at_most("X", 3, 2, 1);
  EXPECT_EQ(off.violations(), 0);
}

/// L = |theta - target|^2 / 2 of one block with two heads; a batch adds its mean index.
Objective quadratic(const Tensor& target) {
  return [target](const std::vector<Tensor>& blocks, const Tensor& batch) -> Evaluation {
    const auto offset = blocks[0] - target;
    const double shift = batch.defined() ? number(batch.to(at::kDouble).mean()) : 0;
    return {number(offset.square().sum()) / 2, offset, {offset + shift}};
  };
}

DescentOptions options_of(double step, int64_t steps) {
  DescentOptions options;
  options.step_size = step;
  options.steps = steps;
  options.samples = 4;
  return options;
}

TEST(Descent, FollowsTheFormulaAndKeepsItsMean) {
  const auto target = torch::tensor({{3.0, 1.0}, {0.0, -1.0}}, at::kDouble);
  auto options = options_of(0.25, 9);
  options.average = true;
  Descent run({{"p", torch::zeros({2, 2}, at::kDouble)}}, quadratic(target), options);
  auto theta = torch::zeros({2, 2}, at::kDouble), sum = torch::zeros_like(theta);
  double before = kUnbounded;
  run.run([&](const Descent& now, const Evaluation& e) {
    EXPECT_TRUE(torch::equal(now.parameters()[0], theta)) << "rows describe what is not updated";
    EXPECT_LE(now.running_min(), before);
    before = now.running_min();
    if (now.step() == 9) return;
    sum += theta;
    theta = theta - 0.25 * e.gradients[0];
  });
  EXPECT_EQ(run.step(), 9);
  EXPECT_LE(largest(run.average()[0] - sum / 9), 1e-12);
  EXPECT_NEAR(run.distance(0), number(theta.norm()), 1e-12);
  EXPECT_GE(run.path_length(), run.distance(0) - 1e-12);
}

TEST(Descent, ProjectsOntoBallsAboutTheStart) {
  const auto target = torch::tensor({{3.0, 1.0}, {0.0, -1.0}}, at::kDouble);
  const auto run_with = [&](double radius) {
    Descent run({{"p", torch::ones({2, 2}, at::kDouble), radius}}, quadratic(target),
                options_of(0.5, 20));
    run.run([](const auto& now, const auto&) { EXPECT_LE(now.infeasibility(), 1e-12); });
    return run.parameters()[0];
  };
  EXPECT_TRUE(torch::equal(run_with(0), torch::ones({2, 2}, at::kDouble)));
  EXPECT_TRUE(torch::equal(run_with(kUnbounded), run_with(1e9))) << "no projection, no rounding";
  EXPECT_NEAR(number((run_with(0.7)[0] - 1).norm()), 0.7, 1e-12);
}

TEST(Descent, BatchesAreUniformAndDivergenceStops) {
  std::vector<double> counts(4);
  auto options = options_of(1e-9, 4000);
  options.batch = 1;
  options.evaluate_every = 4000;
  Descent run(
      {{"p", torch::zeros({1, 1}, at::kDouble)}},
      [&](const auto& blocks, const Tensor& batch) -> Evaluation {
        if (batch.defined()) ++counts[batch[0].template item<int64_t>()];
        return {0, blocks[0], {torch::zeros_like(blocks[0])}};
      },
      options);
  run.run([](const auto&, const auto&) {});
  double chi_square = 0;
  for (const double count : counts) chi_square += (count - 1000) * (count - 1000) / 1000;
  EXPECT_LT(chi_square, 16.3);  // 0.999 quantile with 3 degrees of freedom

  Descent wild({{"p", torch::ones({1, 1}, at::kDouble)}},
               quadratic(torch::zeros({1, 1}, at::kDouble)), options_of(30, 50));
  int64_t rows = 0;
  wild.run([&](const auto&, const auto&) { ++rows; });
  EXPECT_TRUE(wild.diverged());
  EXPECT_LT(rows, 5);
}

TEST(Descent, GoesOnFromItsCheckpointBitForBit) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "descent";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const auto target = torch::tensor({{3.0, 1.0}}, at::kDouble);
  const auto make = [&](const std::filesystem::path& where) {
    auto options = options_of(0.1, 30);
    options.batch = 2;
    options.average = true;
    options.folder = where;
    options.checkpoint_seconds = 0;
    return Descent({{"p", torch::zeros({1, 2}, at::kDouble), 1.0}}, quadratic(target), options);
  };
  auto whole = make("");
  whole.run([](const auto&, const auto&) {});
  struct Stop {};
  auto first = make(folder);
  EXPECT_THROW(first.run([](const auto& now, const auto&) {
    if (now.step() == 17) throw Stop();
  }),
               Stop);
  auto second = make(folder);
  int64_t begin = -1;
  second.run([&](const auto& now, const auto&) { begin = begin < 0 ? now.step() : begin; });
  EXPECT_EQ(begin, 17);
  EXPECT_TRUE(torch::equal(second.parameters()[0], whole.parameters()[0]));
  EXPECT_TRUE(torch::equal(second.average()[0], whole.average()[0]));
  EXPECT_EQ(second.running_min(), whole.running_min());
  EXPECT_EQ(second.path_length(), whole.path_length());
}

TEST(Descent, RefusesWrongOptions) {
  const auto make = [](const DescentOptions& options, double radius = 1, double value = 0) {
    Descent({{"p", torch::full({1}, value, at::kDouble), radius}},
            quadratic(torch::zeros({1}, at::kDouble)), options);
  };
  EXPECT_REFUSED(make(options_of(0, 3)), "expected a finite step size > 0, but got 0");
  EXPECT_REFUSED(make(options_of(std::nan(""), 3)), "expected a finite step size > 0");
  EXPECT_REFUSED(make(options_of(1, 0)), "expected steps, samples >= 1, but got 0 and 4");
  EXPECT_REFUSED(make(options_of(1, 3), -1), "expected a radius >= 0 of p, but got -1");
  EXPECT_REFUSED(make(options_of(1, 3), std::nan("")), "expected a radius >= 0 of p");
  EXPECT_REFUSED(make(options_of(1, 3), 1, kUnbounded), "expected finite p");
}

TEST(Margin, IsCertifiedAgainstAKnownSolution) {
  // Points at height >= 0.5 and the separating direction e_0: the margin is 0.5.
  torch::manual_seed(0);
  const auto y = torch::cat({torch::ones({20}, at::kDouble), -torch::ones({20}, at::kDouble)});
  auto points = torch::randn({40, 3}, at::kDouble);
  points.select(1, 0).copy_(y * (0.5 + torch::rand({40}, at::kDouble)));
  points[0].copy_(torch::tensor({0.5, 0.0, 0.0}, at::kDouble));
  points[20].copy_(torch::tensor({-0.5, 0.0, 0.0}, at::kDouble));
  const auto found = kernel_margin(torch::matmul(points, points.t()), y, {1e-6, 100000});
  EXPECT_TRUE(found.converged);
  EXPECT_LE(found.lower, found.upper);
  EXPECT_NEAR(found.upper, 0.5, 1e-5);
  EXPECT_NEAR(number(found.weights.sum()), 1, 1e-12);
  const auto direction = torch::matmul(found.weights * y, points);
  const auto margins = y * torch::mv(points, direction / direction.norm());
  EXPECT_NEAR(number(margins.min()), found.lower, 1e-9);

  const auto same = torch::ones({2, 2}, at::kDouble);  // both labels at one point
  EXPECT_LE(kernel_margin(same, torch::tensor({1.0, -1.0}, at::kDouble)).lower, 1e-9);
}

TEST(Lanczos, FindsTheEndsOfTheSpectrum) {
  torch::manual_seed(0);
  const auto root = torch::randn({60, 60}, at::kDouble);
  const auto A = root + root.t();
  const auto exact = torch::linalg_eigvalsh(A);
  const auto found = lanczos([&](const Tensor& v) { return torch::mv(A, v); }, 60, 1, 60);
  EXPECT_NEAR(found.smallest.value, number(exact[0]), 1e-9);
  EXPECT_NEAR(found.largest.value, number(exact[59]), 1e-9);
  EXPECT_LE(found.largest.residual, 1e-8);
  const auto early = lanczos([&](const Tensor& v) { return torch::mv(A, v); }, 60, 1, 10);
  EXPECT_GE(early.smallest.value, number(exact[0]));
  EXPECT_LE(early.largest.value, number(exact[59]));
}

TEST(TangentKernel, MeasuresOfKernels) {
  const auto y = torch::tensor({1.0, -1.0, 1.0}, at::kDouble);
  const auto K = torch::outer(y, y);
  const auto centred = y - y.mean();
  EXPECT_NEAR(alignment(K, y), number(centred.square().sum()) / number(y.square().sum()), 1e-12);
  EXPECT_NEAR(drift(2 * K, K), 1, 1e-12);
  EXPECT_NEAR(drift(K, 0 * K), 3, 1e-12) << "absolute where the start is 0";
  EXPECT_NEAR(spectrum(K).effective_rank, 1, 1e-9);
}

// ---- the shallow transformer

struct Setting {
  shallow::Radii rho{3, 3, 3};
  shallow::Data data;
  shallow::Teacher teacher;
  shallow::Params phi0;

  explicit Setting(int64_t m, int64_t n = 40, int64_t T = 6, int64_t d = 4, uint64_t seed = 1)
      : data(shallow::clipped_normal(n, T, d, generator_of(seed, "train"))),
        teacher(shallow::clipped_normal(5, T, d, generator_of(seed, "anchors")), {3, 3, 3}, 64,
                seed),
        phi0(shallow::symmetric_init(m, d, seed)) {
    data.y = teacher.labels(data);
  }
};

Tensor output(const shallow::Data& data, const shallow::Params& p) {
  return shk_output(data.X, data.q, p.W, p.U, p.c);
}

TEST(Shallow, StartsAtZeroAndIsOddAndSymmetricInItsTokens) {
  const Setting s(64);
  EXPECT_LE(largest(output(s.data, s.phi0)), 1e-12 * 8);
  const auto phi = shallow::random_boundary(s.phi0, s.rho, 3);
  const auto f = output(s.data, phi);
  EXPECT_LE(largest(shk_output(-s.data.X, -s.data.q, phi.W, phi.U, phi.c) + f), 1e-12);
  const auto order = torch::tensor({3, 1, 4, 0, 2, 5});
  const auto permuted = s.data.X.index_select(1, order);
  EXPECT_LE(largest(shk_output(permuted, s.data.q, phi.W, phi.U, phi.c) - f), 1e-12);
}

TEST(Shallow, LabelsAreMeansOverHeadsOneByOne) {
  const Setting s(8, 5);
  auto generator = generator_of(1, "teacher pool");
  const auto W = torch::randn({64, 4, 4}, generator, at::kDouble);
  const auto U = torch::randn({64, 4}, generator, at::kDouble);
  const auto v = s.teacher.transport(W, U);
  const auto anchors = shallow::clipped_normal(5, 6, 4, generator_of(1, "anchors"));
  const auto features = [](const Tensor& X, const Tensor& q, const Tensor& Wi, const Tensor& Ui) {
    const auto p = torch::softmax(torch::mv(X, torch::mv(Wi, q)), 0);
    const auto a = torch::mv(X.t(), p);
    const auto M = torch::matmul(X.t(), torch::diag(p).matmul(X)) - torch::outer(a, a);
    const auto h = torch::tanh(torch::dot(Ui, a)), slope = 1 - h * h;
    return std::tuple(h, slope * a, torch::outer(slope * torch::mv(M, Ui), q));
  };
  for (int64_t j = 0; j < 5; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < 64; ++i) {
      Tensor vc = torch::zeros({}, at::kDouble), vu = torch::zeros({4}, at::kDouble),
             vw = torch::zeros({4, 4}, at::kDouble);
      for (int64_t r = 0; r < 5; ++r) {
        const auto [h, b, g] = features(anchors.X[r], anchors.q[r], W[i], U[i]);
        vc += 3 * h / 5;
        vu += 3 * b / 5;
        vw += g * std::min(1.0, 3 / number(g.norm())) / 5;
      }
      EXPECT_LE(std::abs(number(vc - v.c[i])), 1e-12);
      EXPECT_LE(largest(vw - v.w[i]), 1e-12);
      const auto [h, b, g] = features(s.data.X[j], s.data.q[j], W[i], U[i]);
      sum += number(h * vc + torch::dot(b, vu) + (g * vw).sum()) / 64;
    }
    EXPECT_NEAR(sum, number(s.data.y[j]), 1e-12);
  }
}

TEST(Shallow, LinearisedModelIsTheGradient) {
  const Setting s(8, 7);
  const shallow::Linearised linear(s.data, s.phi0);
  const auto phi = shallow::random_boundary(s.phi0, s.rho, 3);
  const auto f_lin = linear(phi);
  const auto W = s.phi0.W.clone().requires_grad_(), U = s.phi0.U.clone().requires_grad_(),
             c = s.phi0.c.clone().requires_grad_();
  const auto f = shk_output_ref(s.data.X, s.data.q, W, U, c);
  for (int64_t j = 0; j < 7; ++j) {
    const auto g = torch::autograd::grad({f[j]}, {W, U, c}, {}, /*retain_graph=*/true);
    const double expected = number((g[0] * (phi.W - s.phi0.W)).sum()) +
                            number((g[1] * (phi.U - s.phi0.U)).sum()) +
                            number((g[2] * (phi.c - s.phi0.c)).sum());
    EXPECT_NEAR(number(f_lin[j]), expected, 1e-10);
  }
  // the twin's gradient by central differences
  const auto e = linear.evaluate(phi, s.data.y);
  const auto ahead = shallow::Params{phi.W + 1e-5, phi.U, phi.c};
  const auto behind = shallow::Params{phi.W - 1e-5, phi.U, phi.c};
  const double slope =
      (linear.evaluate(ahead, s.data.y).loss - linear.evaluate(behind, s.data.y).loss) / 2e-5;
  EXPECT_NEAR(slope, number(e.gradients[0].sum()), 1e-6 * std::abs(slope) + 1e-9);
}

TEST(Shallow, ComparatorIsFeasibleAndAMeanOverHeads) {
  for (const int64_t m : {8, 64}) {
    const Setting s(m);
    const auto phi = s.teacher.transported(s.phi0);
    const double radius = 3 / std::sqrt(static_cast<double>(m)) * (1 + 1e-12);
    EXPECT_LE(largest(phi.c - s.phi0.c), radius);
    EXPECT_LE(number((phi.U - s.phi0.U).norm(2, 1).max()), radius);
    EXPECT_LE(number((phi.W - s.phi0.W).flatten(1).norm(2, 1).max()), radius);
    const auto v = s.teacher.transport(s.phi0.W, s.phi0.U);
    const auto mean = shallow::mean_features(s.data, s.phi0.W, s.phi0.U, v, "tanh");
    EXPECT_LE(largest(shallow::Linearised(s.data, s.phi0)(phi) - mean), 1e-10);
  }
}

TEST(Shallow, BoundsHoldWithinTheBalls) {
  for (const int64_t m : {8, 64})
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      const Setting s(m, 30, seed == 4 ? 64 : 6, 4, seed);
      const auto k = shallow::constants(s.phi0, s.rho, s.teacher.nu(), 30);
      const shallow::Linearised linear(s.data, s.phi0);
      const double root = std::sqrt(static_cast<double>(m));
      for (const auto& phi : {shallow::random_boundary(s.phi0, s.rho, seed),
                              shallow::aligned_boundary(s.phi0, s.rho, s.data, 0, seed),
                              shallow::ascent_boundary(s.phi0, s.rho, s.data, 0, seed, 10),
                              s.teacher.transported(s.phi0)}) {
        const auto f = output(s.data, phi);
        EXPECT_LE(largest(f - linear(phi)), k.B_lin);
        EXPECT_LE(largest(f), k.f_bound);
        const auto [h, B, G] = shk_features(s.data.X, s.data.q, phi.W, phi.U);
        const auto c = phi.c.view({1, -1, 1});
        EXPECT_LE(number(h.norm(2, 1).max()) / root, k.gradient_c);
        EXPECT_LE(number((c * B).flatten(1).norm(2, 1).max()) / root, k.gradient_u);
        const auto norms = (c * G).flatten(1).norm(2, 1) * s.data.q.norm(2, 1);
        EXPECT_LE(number(norms.max()) / root, k.gradient_w);
        const auto facts = shallow::attention_facts(s.data, phi);
        EXPECT_LE(facts.largest_mean, 1 + 1e-12);
        EXPECT_LE(facts.largest_trace, 1 + 1e-12);
        EXPECT_GE(facts.smallest_trace, -1e-12);
      }
    }
}

TEST(Shallow, AttendedTokensStayBoundedAtAnyLength) {
  for (const int64_t T : {1, 16, 1024}) {
    const auto data = shallow::clipped_normal(20, T, 4, generator_of(T, "train"));
    const auto phi = shallow::symmetric_init(50, 4, 1);
    const auto [h, B, G] = shk_features(data.X, data.q, phi.W, phi.U, "identity");
    EXPECT_LE(number(B.norm(2, -1).max()), 1 + 1e-12);
    EXPECT_LE(number((G.norm(2, -1) / phi.U.norm(2, 1)).max()), 1 + 1e-12);
  }
}

TEST(Shallow, StochasticGradientsAverageToTheGradient) {
  const Setting s(8, 6);
  const auto objective = shallow::objective(s.data);
  const auto phi = shallow::random_boundary(s.phi0, s.rho, 3);
  const std::vector<Tensor> blocks = {phi.W, phi.U, phi.c};
  const auto whole = objective(blocks, {});
  std::vector<Tensor> mean = {0 * phi.W, 0 * phi.U, 0 * phi.c};
  for (int64_t j = 0; j < 6; ++j) {
    const auto one = objective(blocks, torch::tensor({j}));
    for (size_t b = 0; b < 3; ++b) mean[b] += one.gradients[b] / 6;
  }
  for (size_t b = 0; b < 3; ++b) EXPECT_LE(largest(mean[b] - whole.gradients[b]), 1e-12);
}

TEST(Shallow, RefusesWrongInputs) {
  EXPECT_REFUSED(shallow::symmetric_init(7, 4, 1), "expected an even number of heads, but got 7");
  EXPECT_REFUSED(shallow::clipped_normal(0, 4, 4, generator_of(1, "")), "expected n, T, d >= 1");
  auto data = shallow::clipped_normal(3, 4, 2, generator_of(1, "train"));
  data.X = 2 * data.X / data.X.norm(2, -1, true);
  EXPECT_REFUSED(shallow::check_data(data), "norm <= 1 in bounded data, but got 2");
  data.X[0][0][0] = std::nan("");
  EXPECT_REFUSED(shallow::check_data(data), "expected finite data");
  EXPECT_REFUSED(shallow::check_data({}), "expected samples, but got none");
  const auto phi0 = shallow::symmetric_init(4, 2, 1);
  EXPECT_REFUSED(shallow::constants(phi0, {3, -1, 3}, {3, 3, 3}, 5),
                 "expected rho >= 0, but got -1");
  EXPECT_REFUSED(shallow::constants(phi0, {3, 3, 3}, {std::nan(""), 3, 3}, 5), "expected nu >= 0");
  EXPECT_REFUSED(shallow::activation_bounds("identity"), "but got identity");
}

/// n samples, m heads: what is allocated besides results, and what was predicted.
void expect_workspace(int64_t n, int64_t m, int64_t chunk_bytes) {
  const SingleThreaded single_threaded;
  const auto data = shallow::clipped_normal(n, 16, 8, generator_of(1, "train"));
  const auto phi = shallow::symmetric_init(m, 8, 1);
  const auto y = torch::zeros({n}, torch::kDouble);
  const auto peak = test::peak_allocation(
      [&] { shk_loss_grad(data.X, data.q, y, phi.W, phi.U, phi.c, "tanh", chunk_bytes); });
  const int64_t results = (phi.W.numel() + phi.U.numel() + phi.c.numel() + n) * 8;
  const auto predicted = shk_workspace_bytes(data.X, data.q, phi.W, phi.U, chunk_bytes);
  EXPECT_NEAR(static_cast<double>(peak - results), static_cast<double>(predicted),
              0.25 * static_cast<double>(predicted));
}

TEST(Shallow, WorkspaceIsWhatIsAllocated) {
  for (const int64_t chunk_bytes : {int64_t{1}, int64_t{100000}, kDefaultChunkBytes})
    expect_workspace(300, 50, chunk_bytes);
}

TEST(Shallow, ManySamplesTakeBoundedMemory) {
  expect_workspace(50000, 16, int64_t{1} << 20);
  const auto X = torch::empty({50000, 16, 8}), W = torch::empty({64, 8, 8});
  EXPECT_LT(shk_workspace_bytes(X, X.select(1, 15), W, W.select(1, 0)), int64_t{8} << 20);
}

TEST(ArData, HasItsCorrelationVarianceAndOracle) {
  const ArOptions options{.lag = 4};
  const int64_t n = 20000;
  const auto series = ar_series(n, options, generator_of(1, "train"));
  EXPECT_EQ(series.size(1), 6);
  const auto variance = number(series.square().mean());
  const double level = 0.1 / (1 - 0.81), deviation = std::sqrt(2.0 / (n * 5.0));
  EXPECT_NEAR(variance, level, 4 * level * deviation * std::sqrt(1.9 / 0.19));
  const auto last = series.select(1, 5), lagged = series.select(1, 1);
  EXPECT_NEAR(number((last * lagged).mean()) / level, 0.9, 4 * std::sqrt(2.0 / n));
  const double oracle = number((last - 0.9 * lagged).square().mean());
  EXPECT_NEAR(oracle, 0.1, 4 * 0.1 * std::sqrt(2.0 / n));

  const auto data = ar_data(10, options, generator_of(1, "train"));
  EXPECT_EQ(data.X.sizes(), (std::vector<int64_t>{10, 5, 17}));
  EXPECT_FALSE(data.bounded);
  EXPECT_TRUE(torch::equal(data.X[0].narrow(1, 1, 16), data.X[1].narrow(1, 1, 16)));
  EXPECT_TRUE(torch::equal(data.q, data.X.select(1, 4)));
  const auto other = ar_data(10, options, generator_of(1, "validation"));
  EXPECT_FALSE(torch::equal(other.y, data.y));

  const ArOptions sliding{.lag = 3, .sliding = true};
  const auto windows = ar_series(50, sliding, generator_of(1, "train"));
  EXPECT_EQ(windows.sizes(), (std::vector<int64_t>{50, 5}));
  EXPECT_TRUE(
      torch::equal(windows.slice(0, 1).slice(1, 0, 4), windows.slice(0, 0, 49).slice(1, 1)));

  EXPECT_REFUSED(ar_series(3, {.lag = 0}, generator_of(1, "")), "expected lag, n >= 1");
  EXPECT_REFUSED(ar_series(3, {.lag = 1, .alpha = 1}, generator_of(1, "")), "|alpha| < 1");
  EXPECT_REFUSED(ar_series(3, {.lag = 4, .window = 3}, generator_of(1, "")),
                 "expected a window of 5 tokens or more for lag 4, but got 3");
  EXPECT_REFUSED(ar_data(3, {.position = "learned"}, generator_of(1, "")), "but got learned");
}

}  // namespace
}  // namespace kktorch::dynamics
