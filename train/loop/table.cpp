#include "train/loop/table.h"

#include <algorithm>

namespace kktorch {
namespace {

size_t width_of(const std::string& cell) {
  return static_cast<size_t>(
      std::count_if(cell.begin(), cell.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

bool starts_like_a_number(const std::string& cell) {
  return !cell.empty() && (cell[0] == '-' || ('0' <= cell[0] && cell[0] <= '9'));
}

}  // namespace

std::string Table::text() const {
  const auto columns = rows_.front().size();
  std::vector<size_t> widths(columns);
  std::vector<bool> numeric(columns, rows_.size() > 1);
  for (size_t r = 0; r < rows_.size(); ++r) {
    for (size_t c = 0; c < columns; ++c) {
      widths[c] = std::max(widths[c], width_of(rows_[r].at(c)));
      if (r > 0 && !starts_like_a_number(rows_[r][c])) numeric[c] = false;
    }
  }
  std::string text;
  for (size_t r = 0; r < rows_.size(); ++r) {
    for (size_t c = 0; c < columns; ++c) {
      const auto& cell = rows_[r][c];
      const std::string gap(widths[c] - width_of(cell), ' ');
      text += (c == 0 ? "" : "  ") + (numeric[c] ? gap + cell : cell + gap);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    text += '\n';
    if (r > 0) continue;
    for (size_t c = 0; c < columns; ++c) text += (c == 0 ? "" : "  ") + std::string(widths[c], '-');
    text += '\n';
  }
  return text;
}

}  // namespace kktorch
