#pragma once
// Checks of module options: "<module>: expected <option> <what>, but got <value>", a ValueError in
// Python.
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <string_view>

namespace kktorch::detail {

/// Throws unless `value` is one of `choices`; `what` is "<module>: expected <option>".
inline void check_choice(std::string_view what, std::string_view value,
                         std::initializer_list<std::string_view> choices) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  std::string list;
  for (const auto choice : choices) list.append(list.empty() ? "" : ", ").append(choice);
  TORCH_CHECK_VALUE(false, what, " in {", list, "}, but got '", value, "'");
}

inline void check_positive(std::string_view what, int64_t value) {
  TORCH_CHECK_VALUE(value >= 1, what, " >= 1, but got ", value);
}

inline void check_probability(std::string_view what, double value) {
  TORCH_CHECK_VALUE(0 <= value && value < 1, what, " in [0, 1), but got ", value);
}

}  // namespace kktorch::detail
