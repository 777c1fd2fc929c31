// Row kernels of convex attention in every tier: the number of Newton steps, and the same result
// for short and long rows.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "csrc/convex/rows.h"
#include "tests/cpp/tier_testing.h"

namespace kktorch {
namespace {

class ConvexKernels : public TierTest {};

/// Rows that rounding or ties could hurt.
torch::Tensor rows(int64_t count, int64_t n) {
  const auto normal = torch::randn({count, n}, torch::kDouble);
  const auto scale = torch::pow(10, torch::rand({count, 1}, torch::kDouble) * 9 - 6);
  return torch::cat({normal, torch::rand({count, n}, torch::kDouble), normal.round(),
                     normal.slice(1, 0, 1).expand({count, n}), normal * scale, normal + 1e4});
}

TEST_F(ConvexKernels, SimplexProjectionTakesFewStepsAndIsExact) {
  for (const int64_t n : {1, 7, 24, 100, 128, 129, 1001}) {
    const auto v = rows(60, n);
    for (const double radius : {0.1, 1.0, 5.0}) {
      auto w = torch::empty_like(v);
      std::vector<double> scratch(csrc::simplex_scratch(n));
      const auto steps = csrc::row_kernels<double>().simplex_project(
          {v.data_ptr<double>(), n}, v.size(0), n, radius, {w.data_ptr<double>(), n},
          scratch.data());
      EXPECT_LE(steps, 20) << n;
      // Optimality: w >= 0, sum w = radius, and v - w is one number on the support, not less off
      // it.
      EXPECT_LE((w.sum(1) - radius).abs().max().item<double>(), 1e-12 * std::max(radius, 1.0));
      EXPECT_GE(w.min().item<double>(), 0);
      const auto inside = w > 0, rest = v - w;
      const auto tau = at::where(inside, rest, 0).sum(1, true) / inside.sum(1, true);
      const auto scale = v.abs().amax(1, true).clamp_min(1);
      EXPECT_LE((at::where(inside, (rest - tau).abs(), (rest - tau).clamp_min(0)) / scale)
                    .max()
                    .item<double>(),
                1e-14);
    }
  }
}

TEST_F(ConvexKernels, FloatsAreProjectedLikeDoubles) {
  for (const int64_t n : {3, 16, 25, 128, 129, 300}) {
    const auto v = rows(20, n).to(torch::kFloat), wide = v.to(torch::kDouble);
    auto w = torch::empty_like(v), exact = torch::empty_like(wide);
    std::vector<float> scratch(csrc::simplex_scratch(n));
    std::vector<double> wide_scratch(csrc::simplex_scratch(n));
    csrc::row_kernels<float>().simplex_project({v.data_ptr<float>(), n}, v.size(0), n, 1,
                                               {w.data_ptr<float>(), n}, scratch.data());
    csrc::row_kernels<double>().simplex_project({wide.data_ptr<double>(), n}, v.size(0), n, 1,
                                                {exact.data_ptr<double>(), n}, wide_scratch.data());
    EXPECT_LE((w - exact).abs().max().item<double>(), 1e-6);
  }
}

}  // namespace
}  // namespace kktorch
