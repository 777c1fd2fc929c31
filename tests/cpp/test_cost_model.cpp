// The cost model against the table of FLOPs that scaled heads save.
#include <gtest/gtest.h>

#include <array>

#include "models/cost_model.h"

namespace kktorch {
namespace {

struct Row {
  int64_t width, ffn;
  std::vector<int64_t> scales;
  std::array<double, 5> ratios;  // at 512, 1024, 2048, 4096 and 8192 tokens
};

TEST(CostModel, RatiosOfPooledToFullAttention) {
  const std::vector<int64_t> octave{1, 1, 2, 2, 4, 4, 8, 8};
  const std::vector<Row> rows{{64, 128, {1, 2}, {.812, .787, .771, .761, .756}},
                              {64, 128, {1, 4}, {.719, .681, .656, .642, .634}},
                              {128, 256, octave, {.668, .602, .548, .513, .492}},
                              {512, 2048, octave, {.848, .801, .734, .658, .589}}};
  for (const auto& row : rows) {
    int64_t tokens = 512;
    for (const double expected : row.ratios) {
      const BlockShape shape{tokens, row.width, row.ffn};
      const double ratio = block_flops(shape, pooled_fraction(row.scales)) / block_flops(shape);
      EXPECT_NEAR(ratio, expected, 1e-3) << "N=" << tokens << ", d=" << row.width;
      tokens *= 2;
    }
  }
}

TEST(CostModel, CountsEveryProduct) {
  // Multiply-adds of N=3, d=2, f=5: four projections, logits and output, two layers of the network.
  const BlockShape shape{3, 2, 5};
  EXPECT_EQ(block_flops(shape), 2 * (4 * 3 * 2 * 2 + 2 * 3 * 3 * 2 + 2 * 3 * 2 * 5));
  // Half the keys: what pooling after the projection leaves undone is half of the attention alone.
  EXPECT_EQ(block_flops(shape) - block_flops(shape, 0.5, /*pool_first=*/false), 2 * 3 * 3 * 2);
  EXPECT_EQ(block_flops(shape, 0.5, false) - block_flops(shape, 0.5), 2 * 3 * 2 * 2);
  EXPECT_EQ(pooled_fraction({1, 2, 4, 4}), 0.5);
}

TEST(CostModel, LinearAttentionReplacesTheProductsOfAllPairs) {
  // Per head of width 2: keys times values and queries times their sum, each N x 2 x 2.
  const BlockShape shape{3, 4, 5};
  const double pairs = 2 * (2 * 3 * 3 * 4), linear = 2 * (2 * 2 * (3 * 2 * 2));
  EXPECT_EQ(linear_block_flops(shape, 2), block_flops(shape) - pairs + linear);
  // Half the keys: half of the keys' projections, and of the products of keys and values.
  EXPECT_EQ(linear_block_flops(shape, 2) - linear_block_flops(shape, 2, 0.5),
            2 * (3 * 4 * 4) + linear / 4);
}

}  // namespace
}  // namespace kktorch
