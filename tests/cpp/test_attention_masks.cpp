// Patterns for attn_mask: the C++ function, entry by entry.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdlib>

#include "ops/attention_masks.h"

namespace kktorch {
namespace {

TEST(AttentionMasks, LocalWindowIsItsDefinition) {
  for (const int64_t width : {0, 1, 3, 20})
    for (const int64_t num_global : {0, 1, 20}) {
      const auto mask = local_window_mask(5, 9, width, num_global);
      ASSERT_EQ(mask.sizes(), at::IntArrayRef({5, 9}));
      ASSERT_EQ(mask.scalar_type(), at::kBool);
      for (int64_t i = 0; i < 5; ++i)
        for (int64_t j = 0; j < 9; ++j)
          EXPECT_EQ(mask[i][j].item<bool>(),
                    std::abs(i - j) <= width || i < num_global || j < num_global)
              << i << ", " << j << ", width " << width << ", num_global " << num_global;
    }
}

TEST(AttentionMasks, EmptyAndNegativeSizes) {
  EXPECT_EQ(local_window_mask(0, 3, 1).sizes(), at::IntArrayRef({0, 3}));
  EXPECT_THROW(local_window_mask(3, 3, -1), c10::ValueError);
  EXPECT_THROW(local_window_mask(-3, 3, 1), c10::ValueError);
}

}  // namespace
}  // namespace kktorch
