#pragma once
// Reader of `.ts` time-series files, the format of the UEA and UCR archives.
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>
#include <vector>

namespace kktorch {

/// The cases of one file. n cases, C channels, L = longest case, K class labels.
struct TsFile {
  std::string problem_name;
  std::vector<std::string> class_labels;  ///< in header order; empty without `@classlabel true`
  at::Tensor x;                           ///< [n, L, C] float32, zero behind the end of a case
  at::Tensor padding_mask;                ///< [n, L] bool, True = behind the end of the case
  at::Tensor lengths;                     ///< [n] int64
  at::Tensor labels;                      ///< [n] int64 in 0..K-1; undefined without class labels
  at::Tensor targets;                     ///< [n] float32; undefined without `@targetlabel true`
};

/// Reads a `.ts` file.
///
/// Lines that start with `#` and blank lines are skipped; `@key value` lines, in any case, up to
/// `@data`; then one case per line: channels separated by `:`, values by `,`, and the label last if
/// the header declares `@classlabel true l1 l2 …` or `@targetlabel true` (a file that declares
/// neither has no labels). CRLF is accepted. `?` and `NaN` are missing values: they are
/// interpolated linearly in time, held at both ends, and 0 in a channel without any value.
///
/// @throws UserError "<file>:<line>: expected <…>, but got <…>".
TsFile read_ts_file(const std::filesystem::path& file);

/// The same cases padded to `length` steps. @throws UserError if a case is longer.
TsFile pad_to(TsFile cases, int64_t length);

}  // namespace kktorch
