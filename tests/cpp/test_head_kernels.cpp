// The kernels of many small heads against the formula and its autograd. CTest runs this suite once
// per instruction-set tier.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "ops/shk.h"
#include "tests/cpp/tier_testing.h"

namespace kktorch {
namespace {

using torch::Tensor;

class HeadKernels : public TierTest {};

/// ||actual - expected|| / ||expected||
double relative(const Tensor& actual, const Tensor& expected) {
  const auto wanted = expected.to(at::kDouble);
  return ((actual.to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
}

TEST_F(HeadKernels, GradientsAreThoseOfAutograd) {
  struct Size {
    int64_t n, T, d, m;
  };
  for (const auto& [n, T, d, m] : {Size{1, 1, 1, 1}, Size{5, 7, 3, 9}, Size{70, 16, 8, 40}})
    for (const auto act : {"tanh", "sigmoid", "identity"}) {
      const auto draw = [](at::IntArrayRef size) { return torch::randn(size, at::kDouble); };
      const auto X = draw({n, T, d}), q = draw({n, d}), y = draw({n});
      const auto W = draw({m, d, d}).requires_grad_(), U = draw({m, d}).requires_grad_(),
                 c = draw({m}).requires_grad_();
      const auto loss = (shk_output_ref(X, q, W, U, c, act) - y).square().mean();
      const auto expected = torch::autograd::grad({loss}, {W, U, c});
      for (const auto dtype : {at::kDouble, at::kFloat}) {
        const auto as = [&](const Tensor& t) { return t.detach().to(dtype); };
        const auto [value, f, gW, gU, gc] =
            shk_loss_grad(as(X), as(q), as(y), as(W), as(U), as(c), act);
        const double tolerance = dtype == at::kDouble ? 1e-11 : 2e-5;
        EXPECT_LE(relative(value, loss.detach()), tolerance);
        EXPECT_EQ(f.scalar_type(), dtype);
        if (T > 1) {  // else it is 0
          EXPECT_LE(relative(gW, expected[0]), tolerance) << act;
        }
        EXPECT_LE(relative(gU, expected[1]), tolerance) << act;
        EXPECT_LE(relative(gc, expected[2]), tolerance) << act;
      }
    }
}

}  // namespace
}  // namespace kktorch
