#pragma once
// Errors of the user, expected by their text.
#include <gtest/gtest.h>

#include <string>

#include "train/common/error.h"

namespace kktorch::test {

/// The message of the UserError that `action` throws.
template <typename Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace kktorch::test

#define EXPECT_REFUSED(expression, text)                                                \
  EXPECT_NE(kktorch::test::error_of([&] { expression; }).find(text), std::string::npos) \
      << kktorch::test::error_of([&] { expression; })
