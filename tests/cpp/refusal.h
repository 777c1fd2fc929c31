#pragma once
// Errors of the user, expected by their text.
#include <gtest/gtest.h>

#include <string>

#include "train/common/error.h"

namespace kktorch::test {

/// The message of the UserError that `f` throws, empty if it throws none.
template <typename F>
std::string refusal(const F& f) {
  try {
    f();
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

}  // namespace kktorch::test

#define EXPECT_REFUSED(expression, text)                                               \
  EXPECT_NE(kktorch::test::refusal([&] { expression; }).find(text), std::string::npos) \
      << kktorch::test::refusal([&] { expression; })
