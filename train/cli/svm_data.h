#pragma once
// Files with the data of attention SVMs, .npz or .pt: token sets, selections, labels.
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "ops/svm_solve.h"

namespace kktorch::cli {

/// The arrays of one file, with errors that name it.
class SvmData {
 public:
  /// @throws UserError as read_arrays.
  explicit SvmData(const std::filesystem::path& file);

  bool has(const std::string& name) const { return arrays_.contains(name); }

  /// @param sizes  -1 for any.
  /// @param shape  the same for a reader, e.g. "[n, T, d]".
  /// @throws UserError if there is no such array, or one of another shape.
  at::Tensor get(const std::string& name, const std::vector<int64_t>& sizes,
                 const std::string& shape) const;

  /// The same in float64. @throws UserError also if a number is not finite.
  at::Tensor numbers(const std::string& name, const std::vector<int64_t>& sizes,
                     const std::string& shape) const;

  /// Of X [n, T, d] and Z [n, dz], or of x, z, row_ptr and perhaps tok.
  TokenSets sets() const;

  /// Y [Q]. @throws UserError if a label is not +1 or -1.
  at::Tensor labels(int64_t queries) const;

  /// @param how  "file": alpha [Q], or sel [nnz] of several tokens; "opt": the largest Y v.x;
  ///     "argmax": the largest logit under W.
  at::Tensor selection(const TokenSets& sets, const std::string& how) const;

  const std::string& file() const { return file_; }

 private:
  std::string file_;
  std::map<std::string, at::Tensor> arrays_;
};

}  // namespace kktorch::cli
