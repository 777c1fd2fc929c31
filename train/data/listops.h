#pragma once
// ListOps: nested list operations on digits, whose value, again a digit, is the class
// (Nangia & Bowman 2018; the lengths are those of the Long Range Arena, Tay et al. 2021).
//
//     [MAX 2 9 [MIN 4 7 ] 0 ]  =  9
//
// The expressions are drawn by a generator of our own: they follow the distribution of the public
// files and are not those files.
#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "train/data/dataset.h"

namespace kktorch {

/// The symbols; the token of a symbol is its place here. The first one is the padding.
inline constexpr std::array<std::string_view, 16> kListOpsSymbols = {
    "PAD", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "[MAX", "[MIN", "[MED", "[SM", "]"};

/// Random expressions by the rule
///
///     tree(depth) = operator tree(depth + 1) … tree(depth + 1) ]   if depth < max_depth, with
///                                                                  probability 1/4;
///                   a digit                                        otherwise
///
/// with tree(1) at the root, uniform operators and digits, and 2..max_args arguments, uniformly.
/// Kept are trees with min_length < number of tokens < max_length, no two the same across all
/// splits. [SM is the sum mod 10, [MED the median, rounded down.
struct ListOpsOptions {
  int64_t max_depth = 10, max_args = 10;
  int64_t min_length = 500, max_length = 2000;
  int64_t train_size = 96000, validation_size = 2000, test_size = 2000;
  uint64_t seed = 0;
};

/// "ListOps", the size of the public task, or "ListOps-small": 100 < length < 300, 20000
/// expressions to train on. Nothing for another name.
std::optional<ListOpsOptions> listops_preset(const std::string& name);

/// The expressions of a split depend on the seed, on the lengths and on the sizes of the splits
/// that are drawn before it: test, then validation, then train. `origin` records the options and a
/// checksum of all expressions.
/// @throws UserError if there are too few different expressions.
Dataset generate_listops(const std::string& name, const ListOpsOptions& options);

/// Reads a text file: in every line the symbols of an expression, separated by spaces, and in all
/// lines or in none, behind a tab, its value.
/// @throws UserError "<file>:<line>: expected <…>, but got <…>".
Cases read_listops(const std::filesystem::path& file);

}  // namespace kktorch
