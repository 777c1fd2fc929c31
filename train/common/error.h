#pragma once
// The errors that the program reports in one sentence, without a backtrace.
#include <fmt/format.h>

#include <stdexcept>
#include <utility>

namespace kktorch {

/// A mistake of the caller or of the machine: a wrong file, a wrong option, a full disk.
class UserError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws UserError with a formatted message, "<what>: expected <...>, but got <...>".
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw UserError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace kktorch
