#pragma once
// The fixture of suites that CTest runs once per instruction-set tier.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <stdexcept>

#include "csrc/common/cpu_tier.h"

namespace kktorch {

/// Skips on a machine that lacks the tier which KKTORCH_CPU_CAPABILITY names.
class TierTest : public testing::Test {
 protected:
  void SetUp() override {
    try {
      csrc::cpu_tier();
    } catch (const std::invalid_argument& missing) {
      GTEST_SKIP() << missing.what();
    }
    torch::manual_seed(0);
  }
};

}  // namespace kktorch
