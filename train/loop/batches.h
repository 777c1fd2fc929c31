#pragma once
// Labelled examples, their stratified split and their order within an epoch.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace kktorch {

/// n examples of a classification task; rows of all three tensors belong together.
struct Examples {
  at::Tensor inputs;        ///< [n, ...]
  at::Tensor padding_mask;  ///< [n, L] bool, True = padding; undefined where nothing is padded
  at::Tensor labels;        ///< [n] int64; undefined where they are not known

  int64_t size() const { return inputs.defined() ? inputs.size(0) : 0; }

  /// The examples at `rows` [m] int64, copied.
  Examples select(const at::Tensor& rows) const;

  /// The examples begin, …, begin + count - 1, not copied.
  Examples narrow(int64_t begin, int64_t count) const;
};

/// The rows of a random split: `rest` and `held_out`, both ascending.
struct Split {
  at::Tensor rest, held_out;
};

/// Holds out round(fraction * count) examples of every class, 0 <= fraction < 1. The split depends
/// on (labels, fraction, seed) alone.
Split stratified_split(const at::Tensor& labels, double fraction, uint64_t seed);

/// The rows of every batch of `epoch`, a function of (n, batch_size, seed, epoch) alone. The last
/// batch may be smaller.
std::vector<at::Tensor> shuffled_batches(int64_t n, int64_t batch_size, uint64_t seed,
                                         int64_t epoch);

}  // namespace kktorch
