// The table of division modulo a prime, and its split.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "train/experiments/convex/modular_table.h"

namespace kktorch::convex {
namespace {

TEST(ModularTable, HoldsEveryEquationOnce) {
  constexpr int64_t p = 97;
  const auto all = equations(p);
  ASSERT_EQ(all.answers.size(0), 9312);
  const auto a = all.pairs.select(1, 0), b = all.pairs.select(1, 1);
  EXPECT_TRUE((all.answers * b).remainder(p).equal(a));
  EXPECT_EQ(b.min().item<int64_t>(), 1);
  EXPECT_EQ(std::get<0>(at::_unique(a * p + b)).numel(), 9312);
  const auto X = one_hot(all, p);
  EXPECT_TRUE(X.argmax(2).equal(all.pairs));
  EXPECT_EQ(X.sum().item<double>(), 2 * 9312);
}

TEST(ModularTable, SplitsAreDisjointCompleteAndSeeded) {
  constexpr int64_t p = 23;
  const auto keys = [](const Equations& e) {
    return e.pairs.select(1, 0) * p + e.pairs.select(1, 1);
  };
  const auto split = split_of(p, 0.3, 5);
  EXPECT_EQ(split.train.answers.size(0), 152);  // of 506
  const auto both = at::cat({keys(split.train), keys(split.test)});
  EXPECT_EQ(std::get<0>(at::_unique(both)).numel(), p * (p - 1));
  EXPECT_TRUE(keys(split_of(p, 0.3, 5).train).equal(keys(split.train)));
  EXPECT_FALSE(keys(split_of(p, 0.3, 6).train).equal(keys(split.train)));
}

}  // namespace
}  // namespace kktorch::convex
