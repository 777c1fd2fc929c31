#pragma once
// The linear map of convex attention on some of its groups, for solving on a working set.
//
//     A_il = sum over groups g = (p, l, k) of  g_ip <W_g, x_ik>          G_g = sum_i g_ip R_il x_ik
//
// The tokens of the groups are held as columns, block by block of samples, so that a sample is a
// lane of a vector whatever d is, and a closed gate a zero. W and G: [groups, d] in the order of
// the groups. Chunks of blocks own private sums, as in design.h.
#include <vector>

#include "csrc/convex/design.h"

namespace kktorch::csrc {

template <typename T>
class GroupDesign : public LinearMap<T> {
 public:
  using typename LinearMap<T>::Head;

  /// @param samples  with `wide` features, D = n d, or token ids, d = V.
  /// @param groups  (p c + l) n + k, ascending.
  GroupDesign(const Samples<T>& samples, int64_t c, int64_t d, const std::vector<int64_t>& groups,
              Parallel parallel);

  void pass(const T* W, int64_t c, const Head& head, T* G) const override;

  int64_t N() const override { return N_; }
  int64_t blocks() const override { return (N_ + rows_ - 1) / rows_; }
  const Parallel& parallel() const override { return parallel_; }

 private:
  /// Consecutive groups of one gate and one output.
  struct Run {
    int64_t p, l, first, count;
  };
  struct Scratch;

  void gather(const Samples<T>& samples, const std::vector<int64_t>& tokens);
  void copy_token(const Samples<T>& samples, int64_t first, int64_t count, int64_t k, T* to) const;
  const T* column(int64_t block, int64_t group) const {
    return columns_.data() + (block * tokens_ + place_[group]) * d_ * rows_;
  }
  const T* gate(int64_t block, int64_t p) const {
    return gates_.empty() ? nullptr : gates_.data() + (block * P_ + p) * rows_;
  }
  void predict(int64_t block, const T* W, Scratch& s) const;
  void accumulate(int64_t block, Scratch& s, T* G) const;

  const int64_t N_, P_, c_, d_;
  Parallel parallel_;
  int64_t tokens_ = 0, rows_ = 0;  ///< rows of a block, the last one padded with zeros
  std::vector<Run> runs_;
  std::vector<int64_t> place_;  ///< of a group's token among the columns
  std::vector<T> columns_;      ///< [blocks, tokens, d, rows]
  std::vector<T> gates_;        ///< [blocks, P, rows], 0 or 1
};

}  // namespace kktorch::csrc
