// Row kernels of convex attention in every tier: the number of Newton steps, and the same result
// for short and long rows.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <vector>

#include "csrc/convex/rows.h"
#include "tests/cpp/tier_testing.h"

namespace kktorch {
namespace {

class ConvexKernels : public TierTest {};

/// Rows that rounding, ties or masked entries could hurt, 8 count of them.
torch::Tensor rows(int64_t count, int64_t n) {
  const auto normal = torch::randn({count, n}, torch::kDouble);
  const auto scale = torch::pow(10, torch::rand({count, 1}, torch::kDouble) * 9 - 6);
  auto masked = normal.masked_fill(torch::rand({count, n}) < 0.5, -INFINITY);
  masked.select(1, 0).zero_();
  return torch::cat({normal, torch::rand({count, n}, torch::kDouble), normal.round(),
                     normal.slice(1, 0, 1).expand({count, n}), normal * scale, masked, normal + 1e4,
                     normal - 1e4});
}

struct Projected {
  torch::Tensor w;
  int64_t steps;  ///< the most of a row
};

template <typename T>
Projected project(const torch::Tensor& v, double radius) {
  const int64_t n = v.size(1);
  auto w = torch::empty_like(v);
  std::vector<T> scratch(csrc::simplex_scratch(n));
  const auto steps = csrc::row_kernels<T>().simplex_project(
      {v.data_ptr<T>(), n}, v.size(0), n, radius, {w.data_ptr<T>(), n}, scratch.data());
  return {w, steps};
}

TEST_F(ConvexKernels, SimplexProjectionTakesFewStepsAndIsExact) {
  int64_t slices = 0;
  for (const int64_t n : {1, 7, 24, 100, 128, 129, 1001}) {
    const auto v = rows(60, n);
    for (const double radius : {0.1, 1.0, 5.0}) {
      const auto [w, steps] = project<double>(v, radius);
      EXPECT_LE(steps, 20) << n;
      EXPECT_LE(project<float>(v.to(torch::kFloat), radius).steps, 20) << n;
      slices += v.size(0);
      // Optimality: w >= 0, sum w = radius, and v - w is one number on the support, not less off
      // it.
      EXPECT_LE((w.sum(1) - radius).abs().max().item<double>(), 1e-12 * std::max(radius, 1.0));
      EXPECT_GE(w.min().item<double>(), 0);
      const auto inside = w > 0, rest = v - w;
      const auto tau = at::where(inside, rest, 0).sum(1, true) / inside.sum(1, true);
      const auto scale = v.masked_fill(v.isinf(), 0).abs().amax(1, true).clamp_min(1);
      EXPECT_LE((at::where(inside, (rest - tau).abs(), (rest - tau).clamp_min(0)) / scale)
                    .max()
                    .item<double>(),
                1e-14);
    }
  }
  EXPECT_GE(slices, 10000);
}

TEST_F(ConvexKernels, RowsThatCannotBeProjectedTakeNoStepsFromTheOthers) {
  for (const int64_t n : {5, 300}) {
    auto v = torch::randn({8, n}, torch::kDouble);
    v[1][n - 1] = NAN;
    v[2][0] = INFINITY;
    v[3].fill_(-INFINITY);
    const auto [w, steps] = project<double>(v, 1);
    EXPECT_LE(steps, 20);
    EXPECT_TRUE(w.slice(0, 1, 4).isnan().all().item<bool>());
    EXPECT_FALSE(w.slice(0, 4).isnan().any().item<bool>());
    EXPECT_LE(project<float>(v.to(torch::kFloat), 1).steps, 20);
  }
}

TEST_F(ConvexKernels, FloatsAreProjectedLikeDoubles) {
  for (const int64_t n : {3, 16, 25, 128, 129, 300}) {
    const auto v = rows(20, n).to(torch::kFloat);
    const auto exact = project<double>(v.to(torch::kDouble), 1).w;
    EXPECT_LE((project<float>(v, 1).w - exact).abs().max().item<double>(), 1e-6);
  }
}

}  // namespace
}  // namespace kktorch
