#pragma once
// What the tests of layers and models share.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>
#include <string>
#include <vector>

namespace kktorch::testing_models {

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

inline void expect_close(const torch::Tensor& actual, const torch::Tensor& expected,
                         double tolerance = 1e-10) {
  ASSERT_EQ(actual.sizes(), expected.sizes());
  ASSERT_TRUE(torch::allclose(actual, expected, /*rtol=*/0, tolerance))
      << "largest difference " << (actual - expected).abs().max().item<double>();
}

/// Random values for every parameter, so that no bias or offset is zero by initialisation; float64,
/// evaluation mode.
template <typename Module>
Module randomised(Module module) {
  torch::manual_seed(7);
  module->to(torch::kDouble);
  torch::NoGradGuard no_grad;
  for (auto& parameter : module->parameters()) parameter.normal_(0, 0.3);
  module->eval();
  return module;
}

inline torch::Tensor random(at::IntArrayRef shape) { return torch::randn(shape, torch::kDouble); }

/// [B, L], True beyond each length.
inline torch::Tensor padding_mask(const std::vector<int64_t>& lengths, int64_t longest) {
  return torch::arange(longest).unsqueeze(0) >= torch::tensor(lengths).unsqueeze(1);
}

/// Every parameter has a finite gradient that is not zero.
inline void expect_gradients(const torch::nn::Module& module) {
  for (const auto& entry : module.named_parameters()) {
    const auto grad = entry.value().grad();
    ASSERT_TRUE(grad.defined()) << entry.key();
    EXPECT_TRUE(grad.isfinite().all().item<bool>()) << entry.key();
    EXPECT_GT(grad.count_nonzero().item<int64_t>(), 0) << entry.key();
  }
}

template <typename Call>
void expect_error(const Call& call, const std::string& message) {
  try {
    call();
    FAIL() << "no error; expected: " << message;
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what_without_backtrace()).find(message), std::string::npos)
        << error.what_without_backtrace();
  }
}

}  // namespace kktorch::testing_models
