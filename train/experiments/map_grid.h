#pragma once
// Matrices to look at: a grid of images, which stands beside the tables of a result.
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace kktorch {

using MapMatrix = std::vector<std::vector<double>>;

/// A row of the grid: a matrix for each of its columns. Rows have a scale of colours each.
struct MapRow {
  std::string name;
  std::vector<MapMatrix> maps;
};

struct MapGrid {
  std::string title;
  std::string down, across;          ///< what the rows and the columns of a matrix are
  std::string quantity;              ///< what its numbers are, with their unit
  std::vector<std::string> columns;  ///< of the grid
  std::vector<MapRow> rows;
  std::string note;
};

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(MapRow, name, maps)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(MapGrid, title, down, across, quantity, columns, rows, note)

}  // namespace kktorch
