#pragma once
// Samples of a run on multi-head attention as a file that torch.load reads: a dictionary of "X",
// "y", "R", "seed", "hash" and, where the data model has them, "relevant".
#include <cstdint>
#include <filesystem>

#include "train/dynamics/multihead.h"

namespace kktorch::dynamics::multihead {

void save_data(const std::filesystem::path& file, const Data& data, uint64_t seed);

/// @throws UserError naming the file, if arrays are missing, of wrong shapes, or not those of its
/// hash.
Data load_data(const std::filesystem::path& file);

/// Saves the samples if the file does not exist; otherwise it must hold the same ones.
/// @throws UserError
void keep_data(const std::filesystem::path& file, const Data& data, uint64_t seed);

}  // namespace kktorch::dynamics::multihead
