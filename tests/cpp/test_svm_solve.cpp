// Solvers of the attention SVM: agreement with each other, statuses, certificates, degenerate
// inputs. Certificates are taken again from x, z, w and lam. CTest runs this suite once per
// instruction-set tier.
#include "csrc/svm/dcd.h"
#include "csrc/svm/face.h"
#include "csrc/svm/finish.h"
#include "csrc/svm/interior.h"
#include "csrc/svm/operators.h"
#include "csrc/svm/oracle.h"
#include "csrc/svm/problem.h"
#include "csrc/svm/solve.h"
#include "tests/cpp/svm_testing.h"
#include "tests/cpp/tier_testing.h"

namespace kktorch::csrc {
namespace {

class SvmSolve : public TierTest {};

SvmResult solve(const SvmProblem& p, const SvmSettings& settings = {}, const double* h = nullptr,
                const double* lam0 = nullptr) {
  return solve_svm({p.view(), p.pairs(), h, lam0}, settings);
}

SvmSettings with(SvmMethod method, double tol, SvmNorm norm = SvmNorm::kFrobenius) {
  SvmSettings settings;
  settings.method = method;
  settings.tol = tol;
  settings.norm = norm;
  return settings;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

std::vector<double> pair_values(const Pairs& pairs, const std::vector<double>& entries) {
  std::vector<double> values;
  for (const int64_t entry : pairs.inequality.entry) values.push_back(entries[entry]);
  return values;
}

/// Labels and a value vector are drawn, and the selected token is the one of the best score: such
/// problems are infeasible in small dimensions.
SvmProblem best_score_problem(int64_t n, int64_t T, int64_t d, uint64_t seed) {
  auto p = random_problem(n, T, d, d, seed);
  std::mt19937_64 generator(seed + 1000);
  const auto v = unit_rows(1, d, generator);
  for (int64_t q = 0; q < n; ++q) {
    const double label = generator() % 2 ? 1 : -1;
    double best = -INFINITY;
    for (int64_t t = 0; t < T; ++t) {
      double score = 0;
      for (int64_t c = 0; c < d; ++c) score += label * v[c] * p.x[(q * T + t) * d + c];
      if (score > best) best = score, p.alpha[q] = t;
    }
  }
  return p;
}

/// kappa from x and z alone.
void expect_farkas(const SvmProblem& p, const SvmResult& r, double kappa_max = 1e7) {
  EXPECT_EQ(r.status, SvmStatus::kInfeasible);
  EXPECT_TRUE(r.w.empty());
  const auto pairs = p.pairs();
  const auto rows = features(p.view(), pairs, pairs.inequality);
  const auto lam = pair_values(pairs, r.lam);
  std::vector<double> combined(rows[0].size());
  double rho = 0, sum = 0;
  for (size_t j = 0; j < rows.size(); ++j) {
    EXPECT_GE(lam[j], 0);
    rho = std::max(rho, std::sqrt(inner(rows[j], rows[j])));
    sum += lam[j];
    for (size_t i = 0; i < combined.size(); ++i) combined[i] += lam[j] * rows[j][i];
  }
  EXPECT_NEAR(sum, 1, 1e-12);
  EXPECT_GE(rho * sum / std::sqrt(inner(combined, combined)), kappa_max);
  EXPECT_GE(r.certificate.kappa, kappa_max);
}

void expect_optimal(const SvmProblem& p, const SvmResult& r, SvmNorm norm, double tol) {
  ASSERT_EQ(r.status, SvmStatus::kOptimal) << r.method << " " << r.certificate.gap;
  const auto pairs = p.pairs();
  const auto lam = pair_values(pairs, r.lam);
  const auto c = certificate(p.view(), pairs, r.w.data(), lam.data(), norm);
  EXPECT_LE(c.gap, tol);
  EXPECT_NEAR(c.min_margin, 1, 1e-9);
  EXPECT_EQ(c.gap, r.certificate.gap);
  const double scale = norm == SvmNorm::kNuclear ? 1 : c.sum_lam;
  EXPECT_NEAR(c.dual_norm * c.dual_norm, scale, 1e-9 * scale);
}

/// One query per row of tokens, z = [1].
SvmProblem prompt(std::vector<double> x, int64_t n, int64_t T, int64_t alpha) {
  const auto dx = static_cast<int64_t>(x.size()) / (n * T);
  return {std::move(x),
          std::vector<double>(n, 1.0),
          cross_index(n, T),
          std::vector<int64_t>(n, alpha),
          n * T,
          dx,
          n,
          1};
}

TEST_F(SvmSolve, GoldenValues) {
  const std::vector<double> keys = {-0.1, 1, 1, 0, 0, 0};
  const std::vector<double> joint = {0, 0, 1, 1, 0, 0, 1, -1, 0, 0, 0.5, 1};
  const std::vector<std::pair<SvmProblem, double>> cases = {{prompt(keys, 1, 3, 0), 1 / 2.02},
                                                            {prompt(keys, 1, 3, 1), 0.5},
                                                            {prompt(joint, 3, 2, 1), 17.0 / 18}};
  for (const auto& [p, value] : cases) {
    const auto exact = solve(p, with(SvmMethod::kOracle, 1e-10));
    EXPECT_NEAR(inner(exact.w, exact.w) / 2, value, 1e-8);
    const auto descent = solve(p, with(SvmMethod::kDcd, 1e-6));
    EXPECT_EQ(descent.method, "dcd");
    EXPECT_NEAR(inner(descent.w, descent.w) / 2, value, 1e-6);
  }
  // The third input may have its margin at 0.
  const std::vector<double> h = {1, 1, 1, 1, 0, 0};
  const auto relaxed = solve(prompt(joint, 3, 2, 1), {}, h.data());
  EXPECT_EQ(relaxed.status, SvmStatus::kOptimal);
  EXPECT_LE(relaxed.certificate.gap, 1e-10);
  EXPECT_TRUE(std::isnan(relaxed.certificate.lower) && std::isnan(relaxed.certificate.upper));
  EXPECT_NEAR(inner(relaxed.w, relaxed.w) / 2, 0.5, 1e-8);
}

TEST_F(SvmSolve, SolversAgree) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const auto d = static_cast<int64_t>(5 + seed % 6), n = static_cast<int64_t>(2 + seed % 5);
    const auto p = random_problem(n, 3 + seed % 4, d, d + 1, seed);
    const auto exact = solve(p, with(SvmMethod::kOracle, 1e-12));
    expect_optimal(p, exact, SvmNorm::kFrobenius, 1e-12);
    EXPECT_TRUE(exact.support_resolved) << exact.certificate.margin_error;
    const auto polished = solve(p, with(SvmMethod::kDcd, 1e-12));
    expect_optimal(p, polished, SvmNorm::kFrobenius, 1e-12);
    EXPECT_LE(distance(exact.w, polished.w), 1e-6) << seed;
    const auto pdhg = solve(p, with(SvmMethod::kPdhg, 1e-13));
    EXPECT_EQ(pdhg.method, "pdhg");
    EXPECT_LE(distance(exact.w, pdhg.w), 1e-6) << seed << " gap " << pdhg.certificate.gap;

    // Column generation from a rough start.
    const auto pairs = p.pairs();
    const auto sets = p.view();
    const Problem problem(sets, pairs);
    SvmSettings settings;
    settings.max_epochs = 10;
    Monitor monitor(settings);
    Candidate found;
    descend(problem, settings, 1e-2, {}, {10, 10, 1}, monitor, found);
    ASSERT_EQ(finish(problem, settings, monitor, found), FinishStatus::kOptimal);
    auto W = found.W;
    for (double& value : W) value /= found.c.min_margin;
    EXPECT_LE(distance(exact.w, W), 1e-6) << seed;
  }
}

TEST_F(SvmSolve, InteriorPointsAgree) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const auto p = random_problem(6 + 2 * seed, 7, 4, 3 + seed % 3, seed);
    const auto exact = solve(p, with(SvmMethod::kOracle, 1e-12));
    ASSERT_EQ(exact.status, SvmStatus::kOptimal);
    const auto pairs = p.pairs();
    const auto sets = p.view();
    const Problem problem(sets, pairs);
    SvmSettings settings;
    settings.max_epochs = 10;
    Monitor monitor(settings);
    Candidate found;
    descend(problem, settings, 1e-2, {}, {10, 10, 1}, monitor, found);
    EXPECT_LT(interior_point(problem, settings, 1e-10, monitor, found), 40);
    EXPECT_LE(found.c.gap, 1e-10) << seed;
    auto W = found.W;
    for (double& value : W) value /= found.c.min_margin;
    EXPECT_LE(distance(exact.w, W), 1e-4 * exact.certificate.norm) << seed;
  }
}

TEST_F(SvmSolve, FaceStepSolvesTheFace) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const auto p = random_problem(6, 5, 6, 7, seed);
    const auto exact = solve(p, with(SvmMethod::kOracle, 1e-12));
    ASSERT_EQ(exact.status, SvmStatus::kOptimal);
    const auto pairs = p.pairs();
    const auto sets = p.view();
    const Problem problem(sets, pairs);
    auto lam = pair_values(pairs, exact.lam);
    std::vector<double> scale;
    for (const double length : problem.norms) scale.push_back(1 / (length * length));
    for (size_t j = 0; j < lam.size(); ++j) lam[j] *= 1 + 0.05 * std::sin(j);
    auto W = problem.adjoint(lam);
    double upper = problem.measure_dual(W, lam).upper;
    const double start = problem.measure_dual(W, lam).gap;
    for (int step = 0; step < 50 && face_step(problem, scale, lam, W); ++step) {
      const auto c = problem.measure_dual(W, lam);
      EXPECT_LE(c.upper, upper * (1 + 1e-12));
      upper = c.upper;
    }
    const auto end = problem.measure_dual(W, lam);
    EXPECT_GT(start, 1e-4);
    EXPECT_LE(end.gap, 1e-7) << seed;
    EXPECT_LE(distance(W, problem.adjoint(lam)), 1e-12 * end.norm);
    EXPECT_GE(*std::min_element(lam.begin(), lam.end()), 0);
  }
}

TEST_F(SvmSolve, FeasibilityIsDecided) {
  int feasible = 0;
  for (const int64_t d : {2, 3})
    for (uint64_t seed = 0; seed < 100; ++seed) {
      const auto p = best_score_problem(5, 5, d, seed);
      const auto exact = solve(p, with(SvmMethod::kOracle, 1e-10));
      const auto descent = solve(p, with(SvmMethod::kDcd, 1e-10));
      ASSERT_EQ(exact.status, descent.status)
          << d << " " << seed << " " << descent.method << " " << exact.certificate.kappa;
      if (exact.status == SvmStatus::kInfeasible) {
        expect_farkas(p, exact);
        expect_farkas(p, descent);
      } else {
        ++feasible;
        expect_optimal(p, exact, SvmNorm::kFrobenius, 1e-10);
        expect_optimal(p, descent, SvmNorm::kFrobenius, 1e-10);
      }
    }
  EXPECT_GT(feasible, 50);
  EXPECT_LT(feasible, 190);
}

TEST_F(SvmSolve, LargeInfeasibleIsProved) {
  const auto p = random_problem(150, 8, 14, 10, 3, false);
  const auto r = solve(p);
  EXPECT_EQ(r.method, "farkas");
  expect_farkas(p, r);
  const auto by_descent = solve(p, with(SvmMethod::kDcd, 1e-10));
  EXPECT_EQ(by_descent.method, "dcd+interior");
  expect_farkas(p, by_descent);
  auto nuclear = with(SvmMethod::kAuto, 1e-6, SvmNorm::kNuclear);
  expect_farkas(p, solve(p, nuclear));
}

std::vector<double> rotated(const std::vector<double>& rows, int64_t d,
                            const std::vector<double>& U) {
  std::vector<double> result(rows.size());
  for (size_t r = 0; r < rows.size() / d; ++r)
    for (int64_t i = 0; i < d; ++i)
      for (int64_t k = 0; k < d; ++k) result[r * d + i] += U[i * d + k] * rows[r * d + k];
  return result;
}

/// A Householder reflection.
std::vector<double> reflection(int64_t d, uint64_t seed) {
  std::mt19937_64 generator(seed);
  const auto u = unit_rows(1, d, generator);
  std::vector<double> U(d * d);
  for (int64_t i = 0; i < d; ++i)
    for (int64_t k = 0; k < d; ++k) U[i * d + k] = (i == k) - 2 * u[i] * u[k];
  return U;
}

TEST_F(SvmSolve, NuclearIsCertified) {
  const auto tight = with(SvmMethod::kAuto, 1e-8, SvmNorm::kNuclear);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const auto p = random_problem(5, 5, 8 + seed % 3, 8, seed);
    const auto r = solve(p, tight);
    expect_optimal(p, r, SvmNorm::kNuclear, 1e-8);
    EXPECT_EQ(r.certificate.rank, r.certificate.mu);
    EXPECT_TRUE(r.certificate.rank_certified());
    EXPECT_LE(r.certificate.rank, 5);

    auto whole = tight;
    whole.reduce = false;
    const auto unreduced = solve(p, whole);
    EXPECT_NEAR(r.certificate.norm, unreduced.certificate.norm, 1e-6 * r.certificate.norm);

    auto turned = p;
    turned.x = rotated(p.x, p.dx, reflection(p.dx, seed + 1));
    turned.z = rotated(p.z, p.dz, reflection(p.dz, seed + 2));
    const auto again = solve(turned, tight);
    EXPECT_NEAR(r.certificate.norm, again.certificate.norm, 1e-7 * r.certificate.norm);
    EXPECT_EQ(r.certificate.rank, again.certificate.rank);

    // Not above the nuclear norm of the Frobenius solution, nor below its Frobenius norm.
    const auto frobenius = solve(p);
    const auto lam = pair_values(p.pairs(), frobenius.lam);
    const auto c =
        certificate(p.view(), p.pairs(), frobenius.w.data(), lam.data(), SvmNorm::kNuclear);
    EXPECT_LE(r.certificate.norm, c.norm * (1 + 1e-8));
    EXPECT_GE(r.certificate.norm, frobenius.certificate.norm);
  }
}

TEST_F(SvmSolve, LargeDescentPolishes) {
  const auto p = random_problem(60, 12, 20, 15, 1);
  const auto r = solve(p);
  EXPECT_EQ(r.method, "dcd+polish");
  expect_optimal(p, r, SvmNorm::kFrobenius, 1e-12);
  // The same problem in a wider space needs no more.
  auto wide = p;
  wide.dx = 45;
  wide.x.assign(p.N * 45, 0.5);  // the constant part cancels in differences
  for (int64_t i = 0; i < p.N; ++i)
    for (int64_t c = 0; c < 20; ++c) wide.x[i * 45 + 2 * c] = p.x[i * 20 + c];
  const auto reduced = solve(wide);
  expect_optimal(wide, reduced, SvmNorm::kFrobenius, 1e-10);
  EXPECT_NEAR(reduced.certificate.norm, r.certificate.norm, 1e-8 * r.certificate.norm);
  EXPECT_EQ(reduced.certificate.rank, 15);
}

// ---- several selected tokens ----

SvmResult solve_selection(const SvmProblem& p, const bool* selected, const SvmSettings& settings) {
  return solve_svm({p.view(), pairs_of_selection(p.index.row_ptr.data(), p.Q, selected)}, settings);
}

TEST_F(SvmSolve, SingletonsAreOneToken) {
  const auto p = random_problem(5, 4, 6, 6, 4);
  bool selected[20] = {};
  for (int64_t q = 0; q < 5; ++q) selected[4 * q + p.alpha[q]] = true;
  const auto one = solve(p), several = solve_selection(p, selected, {});
  EXPECT_EQ(several.status, SvmStatus::kOptimal);
  EXPECT_EQ(one.w, several.w);
  EXPECT_EQ(one.lam, several.lam);
}

/// W of margin 1 between every selected and every masked token, all selected ones equal, by
/// elimination of all equality pairs.
std::vector<double> solve_all_pairs(const SvmProblem& p, const bool* selected) {
  const auto feature = [&](int64_t q, int64_t a, int64_t b) {
    std::vector<double> row;
    for (int64_t i = 0; i < p.dx; ++i)
      for (int64_t k = 0; k < p.dz; ++k)
        row.push_back((p.view().token(a)[i] - p.view().token(b)[i]) * p.view().query(q)[k]);
    return row;
  };
  std::vector<std::vector<double>> basis;
  const auto reject = [&](std::vector<double> row) {
    for (int pass = 0; pass < 2; ++pass)
      for (const auto& unit : basis) {
        const double c = inner(unit, row);
        for (size_t i = 0; i < row.size(); ++i) row[i] -= c * unit[i];
      }
    return row;
  };
  LeastDistanceProblem ldp{.columns = {}, .h = {}, .N = p.dx * p.dz, .rho = 0, .kappa_max = 1e7};
  for (const bool inequality : {false, true})
    for (int64_t q = 0; q < p.Q; ++q)
      for (int64_t a = p.index.row_ptr[q]; a < p.index.row_ptr[q + 1]; ++a)
        for (int64_t b = p.index.row_ptr[q]; b < p.index.row_ptr[q + 1]; ++b) {
          if (!selected[a] || selected[b] == inequality || a == b) continue;
          auto row = reject(feature(q, a, b));
          const double length = std::sqrt(inner(row, row));
          if (inequality) {
            ldp.columns.insert(ldp.columns.end(), row.begin(), row.end());
            ldp.h.push_back(1);
            ldp.rho = std::max(ldp.rho, length);
          } else if (length > 1e-9) {
            for (double& value : row) value /= length;
            basis.push_back(row);
          }
        }
  auto result = solve_least_distance(ldp, [](int64_t) { return true; });
  EXPECT_TRUE(refine_least_distance(ldp, result));
  return result.w;
}

TEST_F(SvmSolve, SeveralTokensByAnchors) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const auto p = random_problem(4, 5, 7, 6, seed);
    const bool selected[20] = {true,  false, true,  false, false, false, true, true, true,  false,
                               false, false, false, true,  false, true,  true, true, false, false};
    const auto exact = solve_selection(p, selected, with(SvmMethod::kOracle, 1e-10));
    ASSERT_EQ(exact.status, SvmStatus::kOptimal);
    const auto descent = solve_selection(p, selected, with(SvmMethod::kDcd, 1e-10));
    ASSERT_EQ(descent.status, SvmStatus::kOptimal) << descent.method << descent.certificate.gap;
    EXPECT_LE(distance(exact.w, descent.w), 1e-6);
    EXPECT_LE(distance(exact.w, solve_all_pairs(p, selected)), 1e-8);
    const auto pairs = pairs_of_selection(p.index.row_ptr.data(), p.Q, selected);
    for (const auto& row : features(p.view(), pairs, pairs.equality))
      EXPECT_NEAR(inner(row, exact.w), 0, 1e-10);
    // W = A*(lam) + E*(nu).
    auto W = exact.w;
    const auto masked = features(p.view(), pairs, pairs.inequality);
    const auto tied = features(p.view(), pairs, pairs.equality);
    for (size_t i = 0; i < W.size(); ++i) {
      for (size_t j = 0; j < masked.size(); ++j)
        W[i] -= exact.lam[pairs.inequality.entry[j]] * masked[j][i];
      for (size_t j = 0; j < tied.size(); ++j)
        W[i] -= exact.nu[pairs.equality.entry[j]] * tied[j][i];
    }
    EXPECT_LE(std::sqrt(inner(W, W)), 1e-9);
  }
}

// ---- degenerate inputs ----

TEST_F(SvmSolve, TrivialWithoutPairs) {
  SvmProblem p{{1, 2, 3, 4}, {1, 1}, cross_index(2, 1), {0, 0}, 2, 2, 2, 1};
  for (const auto norm : {SvmNorm::kFrobenius, SvmNorm::kNuclear}) {
    const auto r = solve(p, with(SvmMethod::kAuto, 1e-6, norm));
    EXPECT_EQ(r.status, SvmStatus::kTrivial);
    EXPECT_EQ(r.w, (std::vector<double>{0, 0}));
    EXPECT_TRUE(r.lam.empty());
    EXPECT_EQ(r.certificate.gap, 0);
    EXPECT_TRUE(std::isinf(r.certificate.lower) && std::isinf(r.certificate.upper));
  }
}

TEST_F(SvmSolve, ZeroPairs) {
  auto p = random_problem(3, 4, 6, 5, 2);
  // Entry 5 becomes a copy of what query 1 selects.
  p.alpha[1] = 2;
  std::copy_n(p.x.begin() + 6 * 6, 6, p.x.begin() + 5 * 6);
  const auto r = solve(p);
  EXPECT_EQ(r.status, SvmStatus::kInfeasible);
  EXPECT_EQ(r.reason, "zero_pair");
  EXPECT_EQ(r.lam[5], 1);
  auto dropping = SvmSettings{};
  dropping.drop_zero_pairs = true;
  const auto dropped = solve(p, dropping);
  EXPECT_EQ(dropped.status, SvmStatus::kOptimal);
  EXPECT_EQ(dropped.zero_pairs, 1);

  // The same without that token: the same solution.
  auto without = p;
  without.index.row_ptr = {0, 4, 7, 11};
  without.index.tok = {0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11};
  without.alpha[1] = 1;
  EXPECT_LE(distance(solve(without).w, dropped.w), 1e-9);

  // Nothing but zero pairs; with h = 0 there, they ask for nothing.
  SvmProblem equal{{1, 2, 1, 2}, {1}, cross_index(1, 2), {0}, 2, 2, 1, 1};
  EXPECT_EQ(solve(equal).reason, "zero_pair");
  EXPECT_EQ(solve(equal, dropping).status, SvmStatus::kTrivial);
  const std::vector<double> relaxed = {0, 0};
  const auto free = solve(equal, {}, relaxed.data());
  EXPECT_EQ(free.status, SvmStatus::kOptimal);
  EXPECT_EQ(free.w, (std::vector<double>{0, 0}));
}

TEST_F(SvmSolve, SingleTokenSetsAndOneQuery) {
  auto p = random_problem(4, 4, 5, 5, 6);
  auto more = p;  // a fifth query that sees one token
  more.z.insert(more.z.end(), 5, 0.25);
  more.Q = 5;
  more.index.row_ptr.push_back(17);
  for (int64_t e = 0; e < 16; ++e) more.index.tok.push_back(e);
  more.index.tok.push_back(3);
  more.alpha.push_back(0);
  EXPECT_LE(distance(solve(p).w, solve(more).w), 1e-9);

  const auto one = random_problem(1, 6, 4, 3, 1);
  expect_optimal(one, solve(one), SvmNorm::kFrobenius, 1e-10);
  expect_optimal(one, solve(one, with(SvmMethod::kAuto, 1e-6, SvmNorm::kNuclear)),
                 SvmNorm::kNuclear, 1e-6);
  EXPECT_EQ(solve(one).certificate.rank, 1);
  const auto column = random_problem(6, 3, 9, 1, 1);
  expect_optimal(column, solve(column, with(SvmMethod::kDcd, 1e-10)), SvmNorm::kFrobenius, 1e-10);
}

TEST_F(SvmSolve, TokensInAnotherOrder) {
  const auto p = random_problem(5, 6, 8, 7, 8);
  auto q = p;  // every set reversed
  for (int64_t i = 0; i < 5; ++i) {
    for (int64_t t = 0; t < 6; ++t)
      std::copy_n(p.x.begin() + (i * 6 + t) * 8, 8, q.x.begin() + (i * 6 + 5 - t) * 8);
    q.alpha[i] = 5 - p.alpha[i];
  }
  const auto a = solve(p), b = solve(q);
  EXPECT_LE(distance(a.w, b.w), 1e-8);
  for (int64_t i = 0; i < 5; ++i)
    for (int64_t t = 0; t < 6; ++t) EXPECT_NEAR(a.lam[i * 6 + t], b.lam[i * 6 + 5 - t], 1e-6);
}

TEST_F(SvmSolve, SameSeedSameBits) {
  const auto p = random_problem(40, 8, 16, 16, 2);
  for (const auto norm : {SvmNorm::kFrobenius, SvmNorm::kNuclear}) {
    const auto settings = with(SvmMethod::kAuto, 1e-6, norm);
    const auto a = solve(p, settings), b = solve(p, settings);
    EXPECT_EQ(a.w, b.w);
    EXPECT_EQ(a.lam, b.lam);
    // One thread each, inside a batch.
    const SvmTask task{p.view(), p.pairs()};
    for (const auto& r : solve_svms({task, task}, settings)) {
      EXPECT_EQ(a.w, r.w);
      EXPECT_EQ(a.lam, r.lam);
    }
  }
}

TEST_F(SvmSolve, CausalSetsAreTheirPrefixes) {
  const int64_t n = 2, T = 4, d = 6;
  auto p = random_problem(n, T, d, d, 12);
  p.z = p.x;  // a token is its own query
  p.Q = n * T;
  p.index = sequence_index(n, T, true);
  p.alpha.clear();
  for (int64_t q = 0; q < p.Q; ++q) p.alpha.push_back(q % T / 2);
  SvmProblem copies{{}, p.z, {{0}, {}}, p.alpha, 0, d, p.Q, d};
  for (int64_t q = 0; q < p.Q; ++q) {
    const auto begin = p.x.begin() + q / T * T * d;
    copies.x.insert(copies.x.end(), begin, begin + (q % T + 1) * d);
    copies.index.row_ptr.push_back(static_cast<int64_t>(copies.x.size()) / d);
  }
  copies.N = copies.index.row_ptr.back();
  const auto a = solve(p), b = solve(copies);
  ASSERT_EQ(a.status, SvmStatus::kOptimal);
  EXPECT_EQ(a.w, b.w);
}

// ---- limits ----

TEST_F(SvmSolve, InterruptReturnsTheBestCertificate) {
  const auto p = random_problem(60, 12, 20, 15, 1);
  auto settings = with(SvmMethod::kDcd, 1e-10);
  int64_t calls = 0;
  settings.progress = [&](const SvmProgress& at) {
    EXPECT_LE(at.lower, at.upper);
    return ++calls < 3;
  };
  const auto r = solve(p, settings);
  EXPECT_EQ(r.status, SvmStatus::kNotCertified);
  EXPECT_EQ(r.reason, "interrupted");
  EXPECT_EQ(r.epochs, 30);
  EXPECT_GT(r.certificate.upper, 0);
  EXPECT_EQ(static_cast<int64_t>(r.w.size()), p.dx * p.dz);

  settings.progress = nullptr;
  settings.time_limit = 0;
  const auto timed = solve(p, settings);
  EXPECT_EQ(timed.status, SvmStatus::kNotCertified);
  EXPECT_EQ(timed.reason, "time_limit");
}

TEST_F(SvmSolve, WarmStartSavesEpochs) {
  const auto p = random_problem(60, 12, 20, 15, 1);
  const auto settings = with(SvmMethod::kDcd, 1e-6);
  const auto cold = solve(p, settings), warm = solve(p, settings, nullptr, cold.lam.data());
  EXPECT_LT(warm.epochs, cold.epochs);
  EXPECT_EQ(warm.status, SvmStatus::kOptimal);
}

TEST_F(SvmSolve, SettingsAreChecked) {
  const auto p = random_problem(2, 3, 4, 4, 1);
  const auto message = [&](SvmSettings settings, const double* h = nullptr) {
    try {
      solve(p, settings, h);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message(with(SvmMethod::kAuto, 0)), "svm_solve: expected tol > 0, but got 0.000000");
  const std::vector<double> negative = {1, 1, -1, 1, 1, 1}, ones(6, 1.0);
  EXPECT_TRUE(message({}, negative.data()).starts_with("svm_solve: expected h >= 0, but got -1") ||
              p.alpha[0] == 2);
  EXPECT_TRUE(message(with(SvmMethod::kDcd, 1e-6), ones.data())
                  .starts_with("svm_solve: expected h only with the Frobenius norm"));
  bool selected[6] = {true, true, false, true, false, false};
  EXPECT_THROW(solve_selection(p, selected, with(SvmMethod::kAuto, 1e-6, SvmNorm::kNuclear)),
               std::invalid_argument);
  EXPECT_THROW(solve(p, with(SvmMethod::kDcd, 1e-6, SvmNorm::kNuclear)), std::invalid_argument);
}

}  // namespace
}  // namespace kktorch::csrc
