// The certified solver in every tier on golden data, which no random generator makes: optima and
// iterations of all losses, plain, gated and of sequences; screening; threads; float32.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "csrc/convex/group_design.h"
#include "csrc/convex/solver.h"
#include "tests/cpp/tier_testing.h"

namespace kktorch::csrc {
namespace {

class ConvexSolver : public TierTest {};

void serial(int64_t units, const std::function<void(int64_t)>& task) {
  for (int64_t u = 0; u < units; ++u) task(u);
}

/// Units in another order than they are numbered.
void backwards(int64_t units, const std::function<void(int64_t)>& task) {
  for (int64_t u = units; u-- > 0;) task(u);
}

/// sin(factor m^2), m = 1, 2, ...
std::vector<double> sines(int64_t size, double factor) {
  std::vector<double> values(size);
  for (int64_t m = 1; m <= size; ++m)
    values[m - 1] = std::sin(factor * static_cast<double>(m) * static_cast<double>(m));
  return values;
}

struct Golden {
  static constexpr int64_t N = 12, n = 4, d = 3, c = 3, P = 4;
  std::vector<double> X = sines(N * n * d, 1), Y = sines(N * c, 3), signs = Y;
  std::vector<int64_t> ids;
  std::vector<uint8_t> gate = std::vector<uint8_t>(N * P, 1);

  Golden() {
    for (auto& y : signs) y = y >= 0 ? 1 : -1;
    for (int64_t i = 0; i < N; ++i) ids.push_back(i % c);
    const auto u1 = sines(P * n, 5), u2 = sines(P * d, 7);
    for (int64_t i = 0; i < N; ++i)
      for (int64_t p = 1; p < P; ++p) {  // gate 0 stays open
        double score = 0;
        for (int64_t k = 0; k < n; ++k)
          for (int64_t q = 0; q < d; ++q)
            score += u1[p * n + k] * X[(i * n + k) * d + q] * u2[p * d + q];
        gate[i * P + p] = score >= 0;
      }
  }

  ConvexData<double> data(Loss loss, bool gated) const {
    ConvexData<double> data = {.N = N, .n = n, .d = d, .c = c};
    data.X = X.data();
    data.loss = loss;
    data.targets.values = loss == Loss::kLogistic ? signs.data() : Y.data();
    if (loss == Loss::kCrossEntropy) data.targets = {nullptr, ids.data()};
    if (gated) {
      data.P = P;
      data.gate = gate.data();
    }
    return data;
  }
};

struct Optimum {
  Loss loss;
  bool gated;
  double beta_max, at_03, at_01;
  int64_t active, iterations;
};

constexpr Optimum kOptima[] = {
    {Loss::kHalfSquared, false, 4.5244098973, 6.1288969478, 3.0534041928, 11, 28},
    {Loss::kHalfSquared, true, 4.5244098973, 5.9023688009, 2.6808043292, 14, 94},
    {Loss::kSquared, false, 9.0488197946, 12.2577938956, 6.1068083856, 11, 28},
    {Loss::kSquared, true, 9.0488197946, 11.8047376019, 5.3616086584, 14, 94},
    {Loss::kLogistic, false, 3.4698691060, 19.5642843169, 10.8138403450, 9, 28},
    {Loss::kLogistic, true, 3.4698691060, 19.0053674954, 10.2317288426, 9, 109},
    {Loss::kCrossEntropy, false, 3.3247690581, 9.2082835576, 4.6943072217, 6, 79},
    {Loss::kCrossEntropy, true, 3.3247690581, 9.1502739695, 4.6172308297, 6, 145}};

int64_t active_groups(const std::vector<double>& Z, int64_t d) {
  int64_t active = 0;
  for (size_t g = 0; g < Z.size(); g += d) {
    double sum = 0;
    for (int64_t q = 0; q < d; ++q) sum += Z[g + q] * Z[g + q];
    active += sum > 0;
  }
  return active;
}

TEST_F(ConvexSolver, OptimaOfTheGoldenDataAreReached) {
  const Golden golden;
  for (const auto& expected : kOptima) {
    const auto data = golden.data(expected.loss, expected.gated);
    const double beta_max = convex_beta_max(data, serial);
    EXPECT_NEAR(beta_max, expected.beta_max, 1e-10 * expected.beta_max);
    const double at_zero =
        certify_convex(data, 1., std::vector<double>(144).data(), nullptr, serial).objective;
    double lowest = INFINITY, highest = -INFINITY;
    SolveOptions options;
    options.progress = [&](const Iterate& now) {
      EXPECT_GE(now.gap, -1e-12 * at_zero);
      lowest = std::min(lowest, now.objective);
      highest = std::max(highest, now.objective - now.gap);
      return true;
    };
    const auto loose = solve_convex(data, 0.3 * beta_max, options, {}, serial);
    EXPECT_EQ(loose.status, Status::kConverged);
    EXPECT_LE(loose.iterations, 2 * expected.iterations);
    options.tol_rel = 1e-11;
    const auto tight = solve_convex(data, 0.3 * beta_max, options, {}, serial);
    EXPECT_EQ(tight.status, Status::kConverged);
    EXPECT_NEAR(tight.objective, expected.at_03, 1e-8 * expected.at_03);
    EXPECT_EQ(active_groups(tight.Z, golden.d), expected.active);
    EXPECT_LE(highest, lowest + 1e-12 * at_zero) << "every bound is below every objective";
    const auto less = solve_convex(data, 0.1 * beta_max, {.tol_rel = 1e-11}, {}, serial);
    EXPECT_NEAR(less.objective, expected.at_01, 1e-8 * expected.at_01);
  }
}

TEST_F(ConvexSolver, TheNullSolutionIsCertifiedFromBetaMaxOn) {
  const Golden golden;
  for (const auto& expected : kOptima) {
    const auto data = golden.data(expected.loss, expected.gated);
    const double beta_max = convex_beta_max(data, serial);
    const auto null = solve_convex(data, beta_max, {}, {}, serial);
    EXPECT_EQ(null.status, Status::kNullSolution);
    EXPECT_EQ(active_groups(null.Z, golden.d), 0);
    EXPECT_LE(null.gap, 1e-12 * null.objective);
    const auto near = solve_convex(data, 0.999 * beta_max, {.tol_rel = 1e-10}, {}, serial);
    EXPECT_EQ(near.status, Status::kConverged);
    EXPECT_GT(active_groups(near.Z, golden.d), 0);
  }
}

TEST_F(ConvexSolver, SequencesReachTheirOptimum) {
  constexpr int64_t N = 6, n = 3, d = 2, c = 2;
  const auto X = sines(N * n * d, 1), Y = sines(N * n * c, 3);
  ConvexData<double> data = {.N = N, .n = n, .d = d, .c = c};
  data.X = X.data();
  data.targets = {Y.data(), nullptr};
  data.penalty = PenaltyKind::kSequence;
  const double beta_max = convex_beta_max(data, serial);
  EXPECT_NEAR(beta_max, 5.0408899384, 1e-10 * beta_max);
  for (const auto& [rho, optimum] : {std::pair(0.3, 7.3885682958), std::pair(0.1, 5.4605522327)}) {
    const auto solved = solve_convex(data, rho * beta_max, {.tol_rel = 1e-11}, {}, serial);
    EXPECT_EQ(solved.status, Status::kConverged);
    EXPECT_NEAR(solved.objective, optimum, 1e-8 * optimum);
    data.penalty = PenaltyKind::kSubstochastic;  // a relaxation: not above
    const auto relaxed = solve_convex(data, rho * beta_max, {.tol_rel = 1e-11}, {}, serial);
    EXPECT_LE(relaxed.objective, optimum * (1 + 1e-10));
    data.penalty = PenaltyKind::kSequence;
  }
}

TEST_F(ConvexSolver, BlockProxIsOptimalAmongFeasibleBlocks) {
  std::mt19937_64 generator(3);
  std::normal_distribution<double> normal;
  for (const int64_t n : {1, 2, 5, 9}) {
    for (int draw = 0; draw < 20; ++draw) {
      std::vector<double> B(n * n);
      for (auto& b : B) b = normal(generator);
      auto C = B;
      const double tau = 0.2 * n, t = project_block(C.data(), n, tau, false);
      const auto objective = [&](const std::vector<double>& M, double sum) {
        double value = tau * sum;
        for (int64_t j = 0; j < n * n; ++j) value += (M[j] - B[j]) * (M[j] - B[j]) / 2;
        return value;
      };
      for (int64_t r = 0; r < n; ++r) {
        double sum = 0;
        for (int64_t k = 0; k < n; ++k) sum += C[r * n + k];
        EXPECT_NEAR(sum, t, 1e-12 * std::max(1., t));
      }
      for (int other = 0; other < 5; ++other) {  // rows of sum s, near C and far from it
        const double s = std::abs(t + (other ? 0.3 : 0.01) * normal(generator));
        std::vector<double> M(n * n);
        for (int64_t r = 0; r < n; ++r) {
          double sum = 0;
          for (int64_t k = 0; k < n; ++k)
            sum += M[r * n + k] = std::abs(C[r * n + k] + 0.1 * other * normal(generator)) + 1e-300;
          for (int64_t k = 0; k < n; ++k) M[r * n + k] *= s / sum;
        }
        EXPECT_GE(objective(M, s), objective(C, t) - 1e-12);
      }
    }
  }
}

/// Gaussian features and targets of a few true groups.
struct Planted {
  int64_t N, n, d, c;
  std::vector<double> X, Y;

  Planted(int64_t N, int64_t n, int64_t d, int64_t c)
      : N(N), n(n), d(d), c(c), X(N * n * d), Y(N * c) {
    std::mt19937_64 generator(5);
    std::normal_distribution<double> normal;
    for (auto& x : X) x = normal(generator);
    for (int64_t i = 0; i < N; ++i)
      for (int64_t l = 0; l < c; ++l)
        Y[i * c + l] =
            X[(i * n + l % n) * d] - X[(i * n + (l + 1) % n) * d + d - 1] + 0.1 * normal(generator);
  }

  ConvexData<double> data() const {
    ConvexData<double> data = {.N = N, .n = n, .d = d, .c = c};
    data.X = X.data();
    data.targets = {Y.data(), nullptr};
    return data;
  }
};

TEST_F(ConvexSolver, ScreeningIsSafeAndRemovesWhatIsInactive) {
  const Planted planted(60, 10, 4, 3);
  const auto data = planted.data();
  const double beta = 0.5 * convex_beta_max(data, serial);
  SolveOptions exact;
  exact.tol_rel = 1e-13;
  exact.screen_every = 0;
  const auto support = solve_convex(data, beta, exact, {}, serial);
  // Without Newton steps, which end before there is anything to screen.
  const auto screened = solve_convex(data, beta, {.tol_rel = 1e-10, .newton = false}, {}, serial);
  EXPECT_EQ(screened.status, Status::kConverged);
  EXPECT_NEAR(screened.objective, support.objective, 1e-10 * support.objective);
  const int64_t inactive = 30 - active_groups(support.Z, 4);
  EXPECT_GE(screened.screened, 0.9 * inactive);
  EXPECT_LE(screened.screened, inactive);
  for (size_t j = 0; j < support.Z.size(); ++j) EXPECT_NEAR(screened.Z[j], support.Z[j], 1e-4);
}

/// Where rounding leaves no gap, active groups are at the bound, and must not be screened out.
TEST_F(ConvexSolver, ScreeningKeepsActiveGroupsWhereTheGapIsRounding) {
  const Golden golden;
  for (const auto loss : {Loss::kHalfSquared, Loss::kCrossEntropy}) {
    const auto data = golden.data(loss, true);
    const double beta = 0.1 * convex_beta_max(data, serial);
    const double best =
        solve_convex(data, beta, {.tol_rel = 1e-11, .screen_every = 0}, {}, serial).objective;
    for (const bool newton : {false, true}) {
      SolveOptions options = {.tol_rel = 0, .max_iter = 3000, .screen_every = 1};
      options.newton = newton;
      const auto last = solve_convex(data, beta, options, {}, serial);
      EXPECT_NEAR(last.objective, best, 1e-10 * best);
    }
  }
}

TEST_F(ConvexSolver, BitsDoNotDependOnTheOrderOfTheWork) {
  for (const int64_t samples : {700, 4000}) {  // the latter with rounds on working sets
    const Planted planted(samples, 12, 5, 6);
    const auto data = planted.data();
    const double beta = 0.2 * convex_beta_max(data, serial);
    const auto forwards = solve_convex(data, beta, {}, {}, serial);
    const auto reversed = solve_convex(data, beta, {}, {}, backwards);
    EXPECT_EQ(forwards.Z, reversed.Z);
    EXPECT_EQ(forwards.objective, reversed.objective);
  }
}

/// On a working set the map is that of all groups with zeros elsewhere, and its gradient a part.
template <typename T>
void expect_group_design(bool gated, bool with_ids) {
  constexpr int64_t N = 700, n = 7, d = 5, c = 3, P = 4;
  std::mt19937_64 generator(11);
  std::normal_distribution<double> normal;
  std::vector<T> X(N * n * d);
  for (auto& x : X) x = static_cast<T>(normal(generator));
  std::vector<int64_t> ids(N * n);
  for (auto& id : ids) id = generator() % d;
  std::vector<uint8_t> gate(N * P);
  for (auto& g : gate) g = generator() % 2;
  Samples<T> samples = {.N = N, .D = n * d, .P = gated ? P : 1, .n = n, .V = d};
  if (with_ids)
    samples.ids = ids.data();
  else
    samples.wide = X.data();
  if (gated) samples.gate = gate.data();
  std::vector<int64_t> groups;
  for (int64_t g = 0; g < samples.P * c * n; ++g)
    if (generator() % 4 == 0) groups.push_back(g);
  const GroupDesign<T> part(samples, c, d, groups, serial);
  const Design<T> all(samples, serial);
  std::vector<T> w(groups.size() * d), W(samples.P * c * n * d), g(w.size()), G(W.size());
  for (auto& x : w) x = static_cast<T>(normal(generator));
  for (size_t j = 0; j < groups.size(); ++j)
    std::copy_n(w.data() + j * d, d, W.data() + groups[j] * d);
  std::vector<T> A(N * c), B(N * c);
  const auto keep = [](std::vector<T>& to) {
    return [&to](int64_t, int64_t first, int64_t count, T* out) {
      std::copy_n(out, count * c, to.data() + first * c);
      return out;
    };
  };
  part.pass(w.data(), c, keep(A), g.data());
  all.pass(W.data(), c, keep(B), G.data());
  const double rounding = 100 * std::numeric_limits<T>::epsilon();
  for (size_t j = 0; j < A.size(); ++j) EXPECT_NEAR(A[j], B[j], rounding * n * d);
  for (size_t j = 0; j < groups.size(); ++j)
    for (int64_t e = 0; e < d; ++e)
      EXPECT_NEAR(g[j * d + e], G[groups[j] * d + e], rounding * N * n * d);
}

TEST_F(ConvexSolver, GroupsOfADesignAreAPartOfIt) {
  for (const bool gated : {false, true})
    for (const bool with_ids : {false, true}) {
      expect_group_design<double>(gated, with_ids);
      expect_group_design<float>(gated, with_ids);
    }
}

TEST_F(ConvexSolver, WorkingSetsReachTheOptimumWithFewerReads) {
  const Planted planted(1000, 20, 6, 4);
  std::vector<int64_t> classes(planted.N);
  std::vector<uint8_t> gate(planted.N * 3, 1);
  for (int64_t i = 0; i < planted.N; ++i) {
    const auto* y = planted.Y.data() + i * 4;
    classes[i] = std::max_element(y, y + 4) - y;
    for (int64_t p = 1; p < 3; ++p) gate[i * 3 + p] = planted.X[i * 120 + p] > 0;
  }
  auto signs = planted.Y;
  for (auto& y : signs) y = y > 0 ? 1 : -1;
  for (const auto loss :
       {Loss::kHalfSquared, Loss::kSquared, Loss::kLogistic, Loss::kCrossEntropy}) {
    auto data = planted.data();
    data.loss = loss;
    if (loss == Loss::kLogistic) data.targets.values = signs.data();
    if (loss == Loss::kCrossEntropy) data.targets = {nullptr, classes.data()};
    data.P = 3;
    data.gate = gate.data();
    const double beta = 0.2 * convex_beta_max(data, serial);
    SolveOptions options = {.tol_rel = 1e-8};
    const auto with = solve_convex(data, beta, options, {}, serial);
    options.screen_every = 0;
    options.newton = false;
    const auto without = solve_convex(data, beta, options, {}, serial);
    EXPECT_EQ(with.status, Status::kConverged);
    EXPECT_EQ(without.status, Status::kConverged);
    EXPECT_NEAR(with.objective, without.objective, 1e-8 * without.objective);
    EXPECT_LT(2 * with.reads, without.reads);
    EXPECT_LE(with.dual, without.objective);
    EXPECT_LE(without.dual, with.objective);
    EXPECT_NEAR(certify_convex(data, beta, with.Z.data(), with.multipliers.data(), serial).gap,
                with.gap, 1e-12 * with.objective);
    for (const auto& now : with.history) EXPECT_GE(now.gap, -1e-12 * with.history[0].objective);
    // Stopped inside a round, it returns what the round has reached.
    options = {.tol_rel = 1e-8, .max_iter = 12};
    const auto few = solve_convex(data, beta, options, {}, serial);
    EXPECT_EQ(few.status, Status::kMaxIter);
    EXPECT_EQ(few.iterations, 12);
    EXPECT_NEAR(few.objective, with.history[11].objective, 1e-12 * few.objective);
    EXPECT_NEAR(certify_convex(data, beta, few.Z.data(), nullptr, serial).objective, few.objective,
                1e-12 * few.objective);
  }
}

/// Tokens of one sample that are nearly alike, as in time series.
TEST_F(ConvexSolver, NewtonStepsReachTheOptimumOfIllConditionedTokens) {
  Planted planted(80, 12, 3, 3);
  for (int64_t i = 0; i < planted.N; ++i)
    for (int64_t k = 1; k < planted.n; ++k)
      for (int64_t q = 0; q < planted.d; ++q) {
        auto* x = planted.X.data() + (i * planted.n + k) * planted.d + q;
        *x = 0.95 * x[-planted.d] + 0.3 * *x;
      }
  std::vector<int64_t> classes(planted.N);
  for (int64_t i = 0; i < planted.N; ++i) classes[i] = planted.Y[i * 3] > planted.Y[i * 3 + 1];
  auto signs = planted.Y;
  for (auto& y : signs) y = y > 0 ? 1 : -1;
  std::vector<uint8_t> gate(planted.N * 2, 1);
  for (int64_t i = 0; i < planted.N; ++i) gate[i * 2 + 1] = planted.X[i * planted.n * 3] > 0;
  for (const auto loss : {Loss::kHalfSquared, Loss::kSquared, Loss::kLogistic, Loss::kCrossEntropy})
    for (const bool gated : {false, true}) {
      auto data = planted.data();
      data.loss = loss;
      if (loss == Loss::kLogistic) data.targets.values = signs.data();
      if (loss == Loss::kCrossEntropy) data.targets = {nullptr, classes.data()};
      if (gated) {
        data.P = 2;
        data.gate = gate.data();
      }
      const double beta = 0.05 * convex_beta_max(data, serial);
      SolveOptions options;
      options.tol_rel = 1e-9;
      const auto with = solve_convex(data, beta, options, {}, serial);
      options.newton = false;
      const auto without = solve_convex(data, beta, options, {}, serial);
      EXPECT_EQ(with.status, Status::kConverged);
      EXPECT_GT(with.newton_steps, 0);
      EXPECT_EQ(without.newton_steps, 0);
      EXPECT_NEAR(with.objective, without.objective, 1e-9 * without.objective);
      EXPECT_LT(with.iterations, without.iterations);
      EXPECT_LE(with.history.back().gap, 1e-9 * with.objective);
      // The certificate again, from Z alone.
      EXPECT_NEAR(certify_convex(data, beta, with.Z.data(), nullptr, serial).objective,
                  with.objective, 1e-12 * with.objective);
      for (size_t j = 1; j < with.history.size(); ++j)
        EXPECT_GE(with.history[j].gap, -1e-12 * with.history[0].objective);
    }
}

TEST_F(ConvexSolver, TokenIdsAreOneHotFeatures) {
  constexpr int64_t N = 40, n = 3, V = 7, c = 4, P = 3;
  std::mt19937_64 generator(7);
  std::vector<int64_t> ids(N * n), classes(N);
  std::vector<double> X(N * n * V);
  std::vector<uint8_t> gate(N * P);
  for (int64_t j = 0; j < N * n; ++j) X[j * V + (ids[j] = generator() % V)] = 1;
  for (auto& y : classes) y = generator() % c;
  for (auto& g : gate) g = generator() % 2;
  ConvexData<double> dense = {.N = N, .n = n, .d = V, .c = c, .P = P};
  dense.X = X.data();
  dense.gate = gate.data();
  dense.loss = Loss::kCrossEntropy;
  dense.targets = {nullptr, classes.data()};
  auto sparse = dense;
  sparse.X = nullptr;
  sparse.ids = ids.data();
  const double beta_max = convex_beta_max(dense, serial);
  EXPECT_NEAR(convex_beta_max(sparse, serial), beta_max, 1e-12 * beta_max);
  const SolveOptions options = {.tol_rel = 1e-12};
  const auto a = solve_convex(dense, 0.2 * beta_max, options, {}, serial);
  const auto b = solve_convex(sparse, 0.2 * beta_max, options, {}, serial);
  EXPECT_NEAR(a.objective, b.objective, 1e-11 * a.objective);
  // The same point by both: predictions and gradients are those of one another to rounding.
  const auto by_features = certify_convex(dense, 0.2 * beta_max, b.Z.data(), nullptr, serial);
  const auto by_ids = certify_convex(sparse, 0.2 * beta_max, b.Z.data(), nullptr, serial);
  EXPECT_NEAR(by_ids.objective, by_features.objective, 1e-12 * by_features.objective);
  EXPECT_NEAR(by_ids.dual, by_features.dual, 1e-12 * by_features.objective);
}

TEST_F(ConvexSolver, APassIsTwoProductsHoweverItIsCut) {
  constexpr int64_t N = 530, D = 37, c = 5, P = 3;
  std::mt19937_64 generator(9);
  std::normal_distribution<double> normal;
  std::vector<double> X(N * D), W(P * c * D), G(P * c * D), A(N * c);
  std::vector<uint8_t> gate(N * P);
  for (auto* values : {&X, &W})
    for (auto& x : *values) x = normal(generator);
  for (auto& g : gate) g = generator() % 3 > 0;
  const Samples<double> samples = {.N = N, .D = D, .P = P, .wide = X.data(), .gate = gate.data()};
  Design<double>(samples, serial)
      .pass(
          W.data(), c,
          [&](int64_t, int64_t first, int64_t count, double* out) {
            std::copy_n(out, count * c, A.data() + first * c);
            return out;
          },
          G.data());
  const auto x = torch::from_blob(X.data(), {N, D}, torch::kDouble);
  const auto w = torch::from_blob(W.data(), {P * c, D}, torch::kDouble);
  const auto g = torch::from_blob(gate.data(), {N, P, 1}, torch::kByte).to(torch::kDouble);
  const auto a = ((x.matmul(w.t())).view({N, P, c}) * g).sum(1);
  const auto grad = (g * a.unsqueeze(1)).view({N, P * c}).t().matmul(x);
  const auto error = [](const std::vector<double>& actual, const torch::Tensor& wanted) {
    const auto t = torch::tensor(actual, torch::kDouble).view(wanted.sizes());
    return ((t - wanted).norm() / wanted.norm()).item<double>();
  };
  EXPECT_LE(error(A, a), 1e-12);
  EXPECT_LE(error(G, grad), 1e-12);
}

TEST_F(ConvexSolver, Float32IsCertifiedInFloat64) {
  const Planted planted(500, 30, 16, 8);
  const std::vector<float> X(planted.X.begin(), planted.X.end()),
      Y(planted.Y.begin(), planted.Y.end());
  ConvexData<float> data = {.N = 500, .n = 30, .d = 16, .c = 8};
  data.X = X.data();
  data.targets = {Y.data(), nullptr};
  const double beta = 0.1 * convex_beta_max(data, serial);
  const auto solved = solve_convex(data, beta, {.tol_rel = 1e-5}, {}, serial);
  EXPECT_EQ(solved.status, Status::kConverged);
  EXPECT_LE(solved.gap, 1e-5 * solved.objective);
  const std::vector<double> Z(solved.Z.begin(), solved.Z.end());
  const auto again = certify_convex(data, beta, Z.data(), solved.multipliers.data(), serial);
  EXPECT_NEAR(again.objective, solved.objective, 1e-12 * solved.objective);
  EXPECT_NEAR(again.gap, solved.gap, 1e-9 * solved.objective);
}

TEST_F(ConvexSolver, NuclearPenaltyIsCertified) {
  const Golden golden;
  for (const auto loss : {Loss::kHalfSquared, Loss::kCrossEntropy}) {
    auto data = golden.data(loss, true);
    data.penalty = PenaltyKind::kNuclear;
    const double beta_max = convex_beta_max(data, serial);
    const auto solved = solve_convex(data, 0.3 * beta_max, {.tol_rel = 1e-9}, {}, serial);
    EXPECT_EQ(solved.status, Status::kConverged);
    // |Z|_* <= sum of the norms of the rows: the optimum is not above that of the groups.
    data.penalty = PenaltyKind::kGroup;
    const auto groups = solve_convex(data, 0.3 * beta_max, {.tol_rel = 1e-9}, {}, serial);
    EXPECT_LE(solved.objective, groups.objective * (1 + 1e-8));
  }
}

TEST_F(ConvexSolver, LimitsAndInterruptionReturnTheBestPoint) {
  const Golden golden;
  const auto data = golden.data(Loss::kHalfSquared, true);
  SolveOptions options;
  options.max_iter = 3;
  const auto few = solve_convex(data, 0.5, options, {}, serial);
  EXPECT_EQ(few.status, Status::kMaxIter);
  EXPECT_EQ(few.iterations, 3);
  EXPECT_GT(few.gap, 0);
  options.max_iter = 1000;
  options.progress = [](const Iterate& now) { return now.iteration < 5; };
  const auto stopped = solve_convex(data, 0.5, options, {}, serial);
  EXPECT_EQ(stopped.status, Status::kInterrupted);
  EXPECT_NEAR(certify_convex(data, 0.5, stopped.Z.data(), nullptr, serial).objective,
              stopped.objective, 1e-12 * stopped.objective);
  options.progress = {};
  options.time_limit = 1e-9;
  EXPECT_EQ(solve_convex(data, 0.5, options, {}, serial).status, Status::kTimeLimit);
}

}  // namespace
}  // namespace kktorch::csrc
