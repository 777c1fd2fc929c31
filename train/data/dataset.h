#pragma once
// A data set for classification, whatever its examples are.
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/loop/batches.h"

namespace kktorch {

/// What an example is, and with it the layout of Examples::inputs.
enum class DataKind {
  kSeries,  ///< float32 [n, L, C], zero behind the end of a series
  kImages,  ///< float32 [n, C, height, width]
  kTokens,  ///< uint8 [n, L], 0 behind the end of a sequence
};

struct Dataset {
  std::string name;
  DataKind kind{};
  std::vector<std::string> class_labels;
  int64_t vocabulary = 0;  ///< kTokens: number of different tokens, the padding included
  Examples train, test;    ///< padded to the same length
  Examples validation{};   ///< empty, unless the data set has validation examples of its own
  nlohmann::json origin;   ///< the files, or the settings, seed and checksum of a generator
};

/// Examples that somebody wants to have classified.
struct Cases {
  Examples examples;                      ///< without labels if the file has none
  std::vector<std::string> class_labels;  ///< what the labels count; empty if the file has none
};

}  // namespace kktorch
