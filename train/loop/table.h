#pragma once
// Plain-text tables: numbers flush right, text flush left.
#include <string>
#include <vector>

namespace kktorch {

class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}

  /// @param row  as many cells as the header.
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

  /// The rows in aligned columns, a rule below the header. A column is flush right if every cell of
  /// it starts like a number. UTF-8 counts one column a code point.
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace kktorch
