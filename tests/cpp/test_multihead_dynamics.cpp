// Multi-head gradient descent: invariances, initialisations, data models, margins, curvature and
// bounds.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "ops/mhgd.h"
#include "tests/cpp/allocations.h"
#include "tests/cpp/refusal.h"
#include "train/common/error.h"
#include "train/dynamics/margin.h"
#include "train/dynamics/multihead.h"
#include "train/loop/seed_stream.h"
#include "train/loop/trials.h"

namespace kktorch::dynamics::multihead {
namespace {

using at::Tensor;

double number(const Tensor& t) { return t.item<double>(); }
double largest(const Tensor& t) { return number(t.abs().max()); }

MixtureOptions small() {
  MixtureOptions options;
  options.d = 10;
  options.M = 8;
  options.zeta = 0.2;
  return options;
}

DescentOptions options_of(double step, int64_t steps, int64_t n) {
  DescentOptions options;
  options.step_size = step;
  options.steps = steps;
  options.samples = n;
  return options;
}

std::vector<Evaluation> run_of(const Data& data, const Params& start, double step, int64_t steps) {
  std::vector<Evaluation> curve;
  Descent run(blocks_of(start), objective(data), options_of(step, steps, data.X.size(0)));
  run.run([&](const Descent&, const Evaluation& e) { curve.push_back(e); });
  return curve;
}

TEST(Multihead, HeadsFromZeroAreOneHeadWithTwoSteps) {
  const auto data = mixture(20, small(), 1, "train");
  const int64_t H = 5;
  for (const double step : {1.0, std::sqrt(5.0)}) {
    const auto curve = run_of(data, zero_init(H, 10, 10), step, 100);
    // independent loop: V = sqrt(H) U with step eta, W with step eta / H, one head
    auto V = torch::zeros({1, 10, 10}, at::kDouble), W = torch::zeros({1, 10, 10}, at::kDouble);
    for (size_t k = 0; k < curve.size(); ++k) {
      auto v = V.clone().requires_grad_(), w = W.clone().requires_grad_();
      const auto phi = mhgd_logits_ref(data.X, w, v);
      const auto loss = torch::softplus(-data.y * phi).mean();
      EXPECT_NEAR(number(loss), curve[k].loss, 1e-10);
      EXPECT_LE(largest(phi - curve[k].outputs), 1e-10);
      const auto g = torch::autograd::grad({loss}, {w, v});
      W = W - step / H * g[0];
      V = V - step * g[1];
    }
  }
}

TEST(Multihead, HeadsFromZeroStayEqual) {
  const auto data = mixture(20, small(), 1, "train");
  Descent run(blocks_of(zero_init(5, 10, 10)), objective(data), options_of(1, 50, 20));
  run.run([](const auto&, const auto&) {});
  for (const auto& block : run.parameters()) EXPECT_LE(largest(block - block[0]), 1e-12);
}

TEST(Multihead, LossCurveDoesNotSeeARotation) {
  const auto data = mixture(20, small(), 1, "train");
  torch::manual_seed(0);
  const auto O = std::get<0>(torch::linalg_qr(torch::randn({10, 10}, at::kDouble)));
  auto rotated = data;
  rotated.X = torch::matmul(data.X, O);
  const auto a = run_of(data, zero_init(4, 10, 10), 1, 60);
  const auto b = run_of(rotated, zero_init(4, 10, 10), 1, 60);
  for (size_t k = 0; k < a.size(); ++k) EXPECT_NEAR(a[k].loss, b[k].loss, 1e-9);
}

TEST(Multihead, BalancedStartsGiveZero) {
  const auto data = mixture(30, small(), 1, "train");
  for (const auto& start :
       {symmetric_init(6, 10, 10, 1), onestep_init(6, small(), 1, Signs::kBalanced)})
    EXPECT_LE(largest(mhgd_logits(data.X, start.W, start.U)), 1e-12);
}

TEST(Multihead, OneStepIsAStepOfGradientDescent) {
  const auto other = mixture(50, small(), 1, "n1");
  const int64_t H = 4;
  const auto start = onestep_init(H, other, 1, Signs::kRademacher);
  const auto zero = zero_init(H, 10, 10);
  auto W = zero.W.requires_grad_(), U = zero.U.requires_grad_();
  const auto loss = torch::softplus(-other.y * mhgd_logits_ref(other.X, W, U)).mean();
  const auto g = torch::autograd::grad({loss}, {W, U});
  const auto sign = (start.U.select(1, 0) * g[1].select(1, 0)).sum(1).sign().view({H, 1, 1});
  EXPECT_LE(largest(start.U - sign * std::sqrt(static_cast<double>(H)) * g[1]), 1e-12);
  EXPECT_LE(largest(start.W) + largest(g[0]), 1e-12);
}

TEST(Multihead, MarginOfTheMixtureIsAtLeastTheClosedForm) {
  const auto options = small();
  const auto data = mixture(40, options, 1, "train");
  const auto start = onestep_init(6, options, 1, Signs::kRademacher);
  const auto basis = mixture_basis(options, 1);
  const auto direction = (basis[0] - basis[1]).expand({6, 10, 10});
  const auto [Z, G] = mhgd_features(data.X, start.W, start.U);
  const auto along = mhgd_jvp(data.X, Z, G, torch::zeros_like(start.W), direction.contiguous());
  const double gamma_lin = 0.2 * std::sqrt(5.0);
  EXPECT_LE(largest(data.y * along / number(direction.norm()) - gamma_lin), 1e-10);

  const auto found = kernel_margin(kernels(data.X, start).total(), data.y);
  EXPECT_TRUE(found.converged);
  EXPECT_LE(found.upper - found.lower, 1e-3 * found.upper);
  EXPECT_GE(found.upper, gamma_lin * (1 - 1e-3));
}

TEST(Multihead, MixtureIsWhatItSays) {
  const auto options = small();
  const auto basis = mixture_basis(options, 1);
  EXPECT_LE(largest(torch::matmul(basis, basis.t()) - torch::eye(10, at::kDouble)), 1e-12);
  const auto data = mixture(2000, options, 1, "train");
  EXPECT_TRUE((data.relevant.sum(1) == 2).all().item<bool>());
  EXPECT_LE(std::abs(number(data.y.sum())), 4 * std::sqrt(2000.0));
  EXPECT_NEAR(data.R, 1, 1e-12);
  const auto relevant = data.relevant.unsqueeze(2).to(at::kDouble);
  const auto own = torch::where((data.y > 0).unsqueeze(1), basis[0], basis[1]).unsqueeze(1);
  EXPECT_LE(largest(relevant * (data.X - own)), 1e-12);
  const auto again = mixture(2000, options, 1, "train");
  EXPECT_TRUE(torch::equal(again.X, data.X));
  EXPECT_FALSE(torch::equal(mixture(2000, options, 1, "test").X, data.X));
  EXPECT_FALSE(torch::equal(mixture(2000, options, 2, "train").X, data.X));
}

TEST(Multihead, PlantedLabelsAreSignsOfOneHead) {
  const auto data = planted(200, 4, 3, 1, "train", 0.5);
  auto generator = generator_of(1, "teacher");
  const auto U = torch::randn({1, 4, 3}, generator, at::kDouble);
  const auto W = torch::randn({1, 3, 3}, generator, at::kDouble) / std::sqrt(3.0);
  EXPECT_GE(number((data.y * mhgd_logits(data.X, W, U)).min()), 0.5);
  EXPECT_NEAR(data.R, number(data.X.norm(2, -1).max()), 1e-12);
}

TEST(Multihead, HessianProductIsDoubleBackward) {
  const auto data = mixture(10, small(), 1, "train");
  torch::manual_seed(0);
  const auto start = symmetric_init(2, 10, 10, 1, 0.3, 0.3);
  const auto draw = [](const Tensor& t) { return torch::randn(t.sizes(), at::kDouble); };
  const std::vector<Tensor> v = {draw(start.W), draw(start.U)}, u = {draw(start.W), draw(start.U)};
  const auto W = start.W.clone().requires_grad_(), U = start.U.clone().requires_grad_();
  const auto loss = torch::softplus(-data.y * mhgd_logits_ref(data.X, W, U)).mean();
  const auto g = torch::autograd::grad({loss}, {W, U}, {}, true, /*create_graph=*/true);
  const auto exact = torch::autograd::grad({(g[0] * v[0]).sum() + (g[1] * v[1]).sum()}, {W, U});
  const auto Hv = hessian_product(data, start, v), Hu = hessian_product(data, start, u);
  for (int b = 0; b < 2; ++b)
    EXPECT_LE(number((Hv[b] - exact[b]).norm()), 1e-5 * number(exact[b].norm()));
  const auto dot = [](const auto& a, const auto& b) {
    return number((a[0] * b[0]).sum()) + number((a[1] * b[1]).sum());
  };
  EXPECT_NEAR(dot(u, Hv), dot(v, Hu), 1e-5 * std::abs(dot(v, Hu)) + 1e-8);
}

TEST(Multihead, BoundsHoldAlongRuns) {
  const auto data = mixture(15, small(), 1, "train");
  for (const auto& start : {zero_init(2, 10, 10), onestep_init(4, small(), 1, Signs::kRademacher),
                            symmetric_init(4, 10, 10, 1, 1, 1)}) {
    Descent run(blocks_of(start), objective(data), options_of(1, 60, 15));
    run.run([&](const Descent& now, const Evaluation& e) {
      const auto theta = params_of(now.parameters());
      const auto b = bounds(theta, data.R);
      const double gradient =
          std::hypot(number(e.gradients[0].norm()), number(e.gradients[1].norm()));
      EXPECT_LE(gradient, b.beta1 * e.loss * (1 + 1e-9));
      EXPECT_LE(std::hypot(now.distance(0), now.distance(1)), now.path_length() + 1e-12);
      const auto facts = attention_facts(data, theta);
      EXPECT_LE(facts.largest_norm, data.R * (1 + 1e-9));
      EXPECT_LE(facts.largest_trace, data.R * data.R * (1 + 1e-9));
      EXPECT_GE(facts.smallest_trace, -1e-12);
      EXPECT_LE(facts.product_over_bound, 1 + 1e-9);
      if (now.step() % 30 != 0) return;
      const auto found = curvature(data, theta, 1);
      const double slack = 1e-5 * std::abs(found.largest.value);
      EXPECT_LE(found.largest.value, b.lambda_max + slack);
      EXPECT_GE(found.smallest.value, -b.kappa * e.loss - slack);
    });
  }
}

TEST(Multihead, LossIsGeneralisedQuasiConvexOnShortSegments) {
  const auto data = mixture(15, small(), 1, "train");
  const auto loss = [&](const Params& p) {
    return logistic_loss(mhgd_logits(data.X, p.W, p.U), data.y);
  };
  torch::manual_seed(0);
  for (int draw = 0; draw < 100; ++draw) {
    const auto a = symmetric_init(4, 10, 10, draw, 0.5, 0.5);
    const auto dW = torch::randn_like(a.W), dU = torch::randn_like(a.U);
    const double length = std::hypot(number(dW.norm()), number(dU.norm()));
    // kappa at the larger end grows with the step: shrink until the condition holds
    double step = 1;
    Params b;
    do {
      step /= 2;
      b = {a.W + step / length * dW, a.U + step / length * dU};
    } while (std::max(bounds(a, data.R).kappa, bounds(b, data.R).kappa) * step * step > 0.5);
    double most = 0;
    for (int i = 0; i <= 10; ++i) {
      const double t = i / 10.0;
      most = std::max(most, loss({a.W + t * (b.W - a.W), a.U + t * (b.U - a.U)}));
    }
    EXPECT_LE(most, 16.0 / 15 * std::max(loss(a), loss(b)));
  }
}

TEST(Multihead, LinearisedModelAndItsGradient) {
  const auto data = mixture(12, small(), 1, "train");
  const auto start = symmetric_init(4, 10, 10, 1, 0.3, 0.3);
  const Linearised linear(data, start);
  EXPECT_LE(largest(linear(start) - mhgd_logits(data.X, start.W, start.U)), 1e-12);
  torch::manual_seed(0);
  const Params moved = {start.W + torch::randn_like(start.W), start.U + torch::randn_like(start.U)};
  const auto e = linear.evaluate(moved, data.y);
  for (int block = 0; block < 2; ++block) {
    const auto shifted = [&](double h) {
      return block == 0 ? Params{moved.W + h, moved.U} : Params{moved.W, moved.U + h};
    };
    const double slope = (linear.evaluate(shifted(1e-5), data.y).loss -
                          linear.evaluate(shifted(-1e-5), data.y).loss) /
                         2e-5;
    EXPECT_NEAR(slope, number(e.gradients[block].sum()), 1e-6 * std::abs(slope) + 1e-8);
  }
}

TEST(Multihead, KernelsAreProductsOfGradients) {
  const auto data = mixture(4, small(), 1, "train");
  const auto start = symmetric_init(4, 10, 10, 1, 0.3, 0.3);
  const auto W = start.W.clone().requires_grad_(), U = start.U.clone().requires_grad_();
  const auto phi = mhgd_logits_ref(data.X, W, U);
  std::vector<Tensor> rows;
  for (int64_t i = 0; i < 4; ++i) {
    const auto g = torch::autograd::grad({phi[i]}, {W, U}, {}, true);
    rows.push_back(torch::cat({g[0].flatten(), g[1].flatten()}));
  }
  const auto J = torch::stack(rows);
  EXPECT_LE(largest(kernels(data.X, start).total() - torch::matmul(J, J.t())), 1e-10);
  const auto zero = kernels(data.X, zero_init(4, 10, 10));
  EXPECT_EQ(largest(zero.blocks[1]), 0);
  EXPECT_REFUSED(kernels(mixture(257, small(), 1, "train").X, start), "at most 256 samples");
}

TEST(Multihead, MetricsAndTheHeadCondition) {
  const auto phi = torch::tensor({1.0, -1.0, 0.0, 2.0}, at::kDouble);
  const auto y = torch::tensor({1.0, 1.0, 1.0, -1.0}, at::kDouble);
  EXPECT_NEAR(zero_one_error(phi, y), 2.5 / 4, 1e-12);
  EXPECT_NEAR(logistic_loss(1000 * phi, y), (0 + 1000 + std::log(2) + 2000) / 4, 1e-9);
  const auto start = zero_init(4, 10, 10);
  auto far = zero_init(4, 10, 10);
  far.U = far.U + 1;
  EXPECT_TRUE(head_condition(start, start, 1).met);
  EXPECT_FALSE(head_condition(far, start, 1).met);
  EXPECT_GT(head_condition(far, start, 1).needed, 1e12);
  EXPECT_TRUE(std::isnan(head_similarity(start.W, start.W)));
  EXPECT_NEAR(head_similarity(start.W + 1, start.W), 1, 1e-12);
}

void expect_workspace(int64_t n, int64_t H, int64_t chunk_bytes) {
  const SingleThreaded single_threaded;
  const auto data = mixture(n, small(), 1, "train");
  const auto theta = symmetric_init(H, 10, 10, 1);
  const auto peak =
      test::peak_allocation([&] { mhgd_loss_grad(data.X, data.y, theta.W, theta.U, chunk_bytes); });
  const int64_t results = (theta.W.numel() + theta.U.numel() + n) * 8;
  const auto predicted = mhgd_workspace_bytes(data.X, theta.W, theta.U, chunk_bytes);
  EXPECT_NEAR(static_cast<double>(peak - results), static_cast<double>(predicted),
              0.25 * static_cast<double>(predicted));
}

TEST(Multihead, WorkspaceIsWhatIsAllocated) {
  for (const int64_t chunk_bytes : {int64_t{1}, int64_t{400000}, kDefaultChunkBytes})
    expect_workspace(60, 20, chunk_bytes);
}

TEST(Multihead, ManyHeadsTakeBoundedMemory) {
  expect_workspace(4, 10000, int64_t{16} << 20);
  const auto X = torch::empty({50000, 10, 10}), W = torch::empty({10000, 10, 10});
  EXPECT_LT(mhgd_workspace_bytes(X, W, W), kDefaultChunkBytes + (int64_t{64} << 20));
}

TEST(Multihead, RefusesWrongInputs) {
  const auto with = [](auto&& change) {
    auto options = small();
    change(options);
    return options;
  };
  EXPECT_REFUSED(mixture_basis(with([](auto& o) { o.d = 9; }), 1),
                 "expected d >= M + 2, but got 9");
  EXPECT_REFUSED(mixture(5, with([](auto& o) { o.zeta = 0.01; }), 1, "train"),
                 "expected 1 <= zeta T <= T - 1");
  EXPECT_REFUSED(mixture(5, with([](auto& o) { o.zeta = 1; }), 1, "train"), "zeta T");
  EXPECT_REFUSED(mixture(0, small(), 1, "train"), "expected n >= 1, but got 0");
  EXPECT_REFUSED(planted(5, 0, 3, 1, "train"), "expected n, T, d >= 1");
  EXPECT_REFUSED(zero_init(0, 3, 3), "expected H >= 1, but got 0");
  EXPECT_REFUSED(symmetric_init(3, 4, 4, 1), "expected an even H for symmetric heads, but got 3");
  EXPECT_REFUSED(onestep_init(3, small(), 1, Signs::kBalanced), "expected an even H for balanced");
  EXPECT_REFUSED(onestep_init(4, with([](auto& o) { o.noise_sigma = 0.1; }), 1, Signs::kBalanced),
                 "expected noiseless data for n1 = inf");
  auto data = mixture(5, small(), 1, "train");
  data.y[0] = 0.5;
  EXPECT_REFUSED(check_data(data), "expected labels -1 and +1");
  data.y[0] = 1;
  data.X[0][0][0] = std::nan("");
  EXPECT_REFUSED(check_data(data), "expected finite data");
  EXPECT_REFUSED(check_data({}), "expected samples, but got none");
}

}  // namespace
}  // namespace kktorch::dynamics::multihead
