// Pair operators, dense kernels, the finite part and certificates against literal formulas. CTest
// runs this suite once per instruction-set tier.
#include "csrc/svm/certificate.h"
#include "csrc/svm/dense.h"
#include "csrc/svm/finite_part.h"
#include "csrc/svm/operators.h"
#include "tests/cpp/svm_testing.h"
#include "tests/cpp/tier_testing.h"

namespace kktorch::csrc {
namespace {

class SvmCertificate : public TierTest {
 protected:
  std::vector<double> random(int64_t count) {
    std::normal_distribution<double> normal;
    std::vector<double> values(count);
    for (auto& value : values) value = normal(generator_);
    return values;
  }
  std::vector<double> positive(int64_t count) {
    auto values = random(count);
    for (auto& value : values) value = std::abs(value);
    return values;
  }
  std::mt19937_64 generator_{7};
};

TEST_F(SvmCertificate, GemmOfEveryLayoutAndSize) {
  for (const auto& [m, n, k] :
       {std::tuple{1, 1, 1}, {7, 25, 3}, {97, 49, 300}, {8, 24, 256}, {200, 500, 65}}) {
    const auto A = random(m * k), B = random(k * n), C = random(m * n);
    for (const bool ta : {false, true})
      for (const bool tb : {false, true}) {
        auto found = C;
        const MatrixView a{A.data(), ta ? 1 : k, ta ? m : 1}, b{B.data(), tb ? 1 : n, tb ? k : 1};
        gemm(m, n, k, -2, a, b, found.data(), n);
        double worst = 0;
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < n; ++j) {
            double sum = 0;
            for (int64_t p = 0; p < k; ++p)
              sum += a.data[i * a.row + p * a.column] * b.data[p * b.row + j * b.column];
            worst = std::max(worst, std::abs(C[i * n + j] - 2 * sum - found[i * n + j]));
          }
        EXPECT_LE(worst, 1e-12 * k) << m << " " << n << " " << k << " " << ta << tb;
      }
  }
}

TEST_F(SvmCertificate, CholeskySolvesAndRefuses) {
  for (const int64_t n : {1, 5, 96, 97, 250}) {
    const auto B = random(n * (n + 3)), rhs = random(n);
    std::vector<double> A(n * n);
    gemm(n, n, n + 3, 1, row_major(B.data(), n + 3), row_major(B.data(), n + 3).transposed(),
         A.data(), n);
    auto L = A, solution = rhs;
    ASSERT_TRUE(cholesky(L.data(), n, 0));
    cholesky_solve(L.data(), n, solution.data());
    // Backward stable: the residual is small next to |A| |x|.
    const double scale = norm(A) * norm(solution);
    for (int64_t i = 0; i < n; ++i) {
      double residual = -rhs[i];
      for (int64_t j = 0; j < n; ++j) residual += A[i * n + j] * solution[j];
      EXPECT_LE(std::abs(residual), 1e-13 * scale);
    }
    A[n * n - 1] = -1;
    EXPECT_FALSE(cholesky(A.data(), n, 0));
  }
}

// Ragged sets through tok: some of one token, one without any pair.
SvmProblem ragged() {
  auto p = random_problem(5, 6, 7, 3, 11);
  p.index.tok = {3, 1, 20, 29, 4, 4, 9, 0, 28, 17, 2};
  p.index.row_ptr = {0, 4, 5, 8, 10, 11};
  p.alpha = {2, 0, 1, 1, 0};
  return p;
}

TEST_F(SvmCertificate, OperatorsAreTheFeatures) {
  for (const auto& p : {ragged(), random_problem(130, 3, 5, 9, 1), random_problem(1, 4, 1, 1, 2)}) {
    const auto sets = p.view();
    const auto pairs = p.pairs();
    const auto rows = features(sets, pairs, pairs.inequality);
    const int64_t M = pairs.inequality.size(), size = p.dx * p.dz;
    ASSERT_EQ(M, static_cast<int64_t>(rows.size()));
    const auto W = random(size), lam = random(M);
    std::vector<double> margins(M), adjoint(size), expected(size), norms(M);
    pair_margins(sets, pairs.anchor, pairs.inequality, W.data(), margins.data());
    pair_adjoint(sets, pairs.anchor, pairs.inequality, lam.data(), adjoint.data());
    pair_norms(sets, pairs.anchor, pairs.inequality, norms.data());
    for (int64_t j = 0; j < M; ++j) {
      EXPECT_NEAR(margins[j], inner(rows[j], W), 1e-13);
      EXPECT_NEAR(norms[j], std::sqrt(inner(rows[j], rows[j])), 1e-13);
      for (int64_t i = 0; i < size; ++i) expected[i] += lam[j] * rows[j][i];
    }
    for (int64_t i = 0; i < size; ++i) EXPECT_NEAR(adjoint[i], expected[i], 1e-12);
    EXPECT_NEAR(inner(margins, lam), inner(adjoint, W), 1e-11);  // <A(W), lam> = <W, A*(lam)>
  }
}

TEST_F(SvmCertificate, GramIsTheFeaturesProduct) {
  const auto a = random(70 * 4), z = random(70 * 3);
  std::vector<double> G(70 * 70);
  pair_gram(a.data(), z.data(), 70, 4, 3, G.data());
  const auto row = [](const std::vector<double>& m, int64_t i, int64_t width) {
    return std::vector<double>(m.begin() + i * width, m.begin() + (i + 1) * width);
  };
  for (const int64_t i : {0, 1, 63, 69})
    for (const int64_t j : {0, 2, 68})
      EXPECT_NEAR(G[i * 70 + j],
                  inner(row(a, i, 4), row(a, j, 4)) * inner(row(z, i, 3), row(z, j, 3)), 1e-12);
}

TEST_F(SvmCertificate, SequencesAreTheirPrefixes) {
  const auto full = sequence_index(2, 3, false), causal = sequence_index(2, 3, true);
  EXPECT_EQ(full.row_ptr, (std::vector<int64_t>{0, 3, 6, 9, 12, 15, 18}));
  EXPECT_EQ(causal.row_ptr, (std::vector<int64_t>{0, 1, 3, 6, 7, 9, 12}));
  EXPECT_EQ(causal.tok, (std::vector<int64_t>{0, 0, 1, 0, 1, 2, 3, 3, 4, 3, 4, 5}));
}

// No solver: any W and any lam give a bracket, so the lower bounds of many W lie below the upper
// bounds of many lam.
TEST_F(SvmCertificate, EveryLowerIsBelowEveryUpper) {
  const auto p = random_problem(4, 4, 6, 5, 3);
  const auto sets = p.view();
  const auto pairs = p.pairs();
  const int64_t M = pairs.inequality.size();
  for (const auto kind : {SvmNorm::kFrobenius, SvmNorm::kNuclear}) {
    double lower = -INFINITY, upper = INFINITY;
    for (int draw = 0; draw < 50; ++draw) {
      // W = A*(positive) is close to feasible.
      std::vector<double> W(p.dx * p.dz);
      pair_adjoint(sets, pairs.anchor, pairs.inequality, positive(M).data(), W.data());
      const auto c = certificate(sets, pairs, W.data(), positive(M).data(), kind);
      EXPECT_GE(c.gap, 0);
      EXPECT_EQ(c.gap == 1, c.lower <= 0);
      EXPECT_GE(c.kappa, 1);
      lower = std::max(lower, c.lower);
      upper = std::min(upper, c.upper);
    }
    EXPECT_GT(lower, 0);
    EXPECT_LE(lower, upper);
  }
}

TEST_F(SvmCertificate, OnePairIsExact) {
  // min |W| with a^T W z >= 1 is W = a z^T / (|a|^2 |z|^2), rank 1, margin* = |a| |z|.
  SvmProblem p{{0, 0, 0, -3, 0, 4}, {1, 2}, cross_index(1, 2), {0}, 2, 3, 1, 2};
  const auto pairs = p.pairs();
  const std::vector<double> W = {3, 6, 0, 0, -4, -8}, lam = {0.3};
  for (const auto kind : {SvmNorm::kFrobenius, SvmNorm::kNuclear}) {
    const auto c = certificate(p.view(), pairs, W.data(), lam.data(), kind);
    EXPECT_NEAR(c.lower, 5 * std::sqrt(5), 1e-12);
    EXPECT_NEAR(c.upper, 5 * std::sqrt(5), 1e-12);
    EXPECT_LE(c.gap, 1e-14);
    EXPECT_NEAR(c.kappa, 1, 1e-14);
    EXPECT_EQ(c.rank, 1);
    EXPECT_EQ(c.mu, 1);
    EXPECT_TRUE(c.rank_certified());
  }
}

TEST_F(SvmCertificate, DegenerateInputs) {
  SvmProblem single{{1, 2}, {1}, cross_index(1, 1), {0}, 1, 2, 1, 1};
  const std::vector<double> W = {0, 0};
  const auto trivial =
      certificate(single.view(), single.pairs(), W.data(), nullptr, SvmNorm::kFrobenius);
  EXPECT_EQ(trivial.gap, 0);
  EXPECT_TRUE(std::isinf(trivial.lower) && std::isinf(trivial.upper));

  const auto p = random_problem(3, 3, 2, 2, 5);
  const std::vector<double> zero(6), zero_w(4);
  const auto c = certificate(p.view(), p.pairs(), zero_w.data(), zero.data(), SvmNorm::kFrobenius);
  EXPECT_EQ(c.lower, 0);
  EXPECT_EQ(c.gap, 1);
  EXPECT_EQ(c.kappa, 0);
  EXPECT_TRUE(std::isnan(c.cosine));
  EXPECT_FALSE(c.support_resolved());
}

TEST_F(SvmCertificate, FinitePartProjects) {
  auto p = random_problem(4, 5, 5, 4, 9);
  const bool selected[] = {true,  false, true, false, false, false, true, false, false, false,
                           false, true,  true, true,  false, true,  true, true,  true,  true};
  const auto sets = p.view();
  const auto pairs = pairs_of_selection(p.index.row_ptr.data(), p.Q, selected);
  EXPECT_EQ(pairs.anchor, (std::vector<int64_t>{0, 6, 11, 15}));
  EXPECT_EQ(pairs.inequality.size(), 9);
  const auto rows = features(sets, pairs, pairs.equality);
  ASSERT_EQ(rows.size(), 7u);
  const FinitePart finite(sets, pairs);
  const auto W = random(20);
  const auto inside = finite.project(W.data()), outside = finite.complement(W.data());
  for (const auto& row : rows) {
    EXPECT_NEAR(inner(row, outside), 0, 1e-13);
    EXPECT_NEAR(inner(row, inside), inner(row, W), 1e-13);
  }
  EXPECT_NEAR(inner(inside, outside), 0, 1e-12);
  const auto again = finite.project(inside.data());
  for (int i = 0; i < 20; ++i) EXPECT_NEAR(again[i], inside[i], 1e-12);
}

TEST_F(SvmCertificate, LocalOptimalityHasThreeValues) {
  const auto pairs = random_problem(1, 3, 2, 2, 1).pairs();  // one query, two pairs
  const int64_t anchor = pairs.anchor[0];
  std::vector<double> score(3, 1.0);
  score[anchor] = 2;
  const std::vector<double> support = {1, 1 + 1e-3};
  EXPECT_EQ(local_optimality(pairs, support, score.data(), 0), LocalOptimality::kYes);
  EXPECT_EQ(local_optimality(pairs, support, score.data(), 1), LocalOptimality::kYes);
  score[pairs.inequality.entry[0]] = 2;  // a tie is not strict
  EXPECT_EQ(local_optimality(pairs, support, score.data(), 0), LocalOptimality::kNo);
  EXPECT_EQ(local_optimality(pairs, support, score.data(), 1e-2), LocalOptimality::kUnresolved);
  score[pairs.inequality.entry[0]] = 1;
  score[pairs.inequality.entry[1]] = 5;  // beyond the support
  EXPECT_EQ(local_optimality(pairs, support, score.data(), 0), LocalOptimality::kYes);
  EXPECT_EQ(local_optimality(pairs, support, score.data(), 1e-2), LocalOptimality::kUnresolved);
}

}  // namespace
}  // namespace kktorch::csrc
