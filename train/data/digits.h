#pragma once
// Images of handwritten digits, as the package scikit-learn ships them.
#include <filesystem>

#include "train/data/dataset.h"

namespace kktorch {

/// Reads a CSV file, plain or packed by gzip: in every line the 64 pixels of an 8 x 8 image, row by
/// row, integers in 0..16, and in all lines or in none the digit.
/// @throws UserError "<file>:<line>: expected <…>, but got <…>".
Cases read_digits(const std::filesystem::path& file);

/// The 1797 images [1, 8, 8] of scikit-learn in the virtual environment. A quarter of every digit,
/// chosen once and for all (stratified_split with seed 0), is the test set.
/// @throws UserError if the package is not installed.
Dataset load_digits();

}  // namespace kktorch
