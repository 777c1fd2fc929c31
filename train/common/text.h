#pragma once
// Pieces of lines.
#include <string_view>
#include <vector>

namespace kktorch {

/// `text` without the blanks at both ends.
std::string_view trim(std::string_view text);

/// The trimmed parts between the separators; one more than there are separators.
std::vector<std::string_view> split(std::string_view text, char separator);

}  // namespace kktorch
