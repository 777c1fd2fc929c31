#pragma once
// Means of windows of tokens and their gradient (formula: ops/token_pool.h). Torch-free.
//
//     pooled_w = (1 / n_w) sum_{j in w, valid} x_j          dx_j = dpooled_{w(j)} / n_{w(j)}
#include <cstdint>

#include "csrc/common/types.h"

namespace kktorch::csrc {

/// Number of windows of a sequence of N tokens; Int is int64_t or a symbolic integer.
template <typename Int>
Int window_count(const Int& N, const Int& window, const Int& num_special, bool drop_tail) {
  const Int body = N - num_special;
  return num_special + (drop_tail ? body : body + window - 1) / window;
}

/// Where the windows of a sequence lie.
struct Windows {
  int64_t length, window, num_special;
  bool drop_tail;

  int64_t count() const { return window_count(length, window, num_special, drop_tail); }
  int64_t begin(int64_t w) const {
    return w < num_special ? w : num_special + (w - num_special) * window;
  }
  int64_t end(int64_t w) const { return begin(w + 1) < length ? begin(w + 1) : length; }
};

/// Kernels for storage type T, on the windows [first, last) of one sequence. padding: [N], true =
/// not valid, or null; count: [Nw], n_w; scratch: [2 C].
template <typename T>
struct PoolKernels {
  using A = acc_t<T>;

  void (*forward)(Rows<const T> input, const bool* padding, const float* count,
                  const Windows& windows, int64_t first, int64_t last, int64_t C, Rows<T> pooled,
                  A* scratch);

  /// Tokens that are not valid get 0; tokens behind the last window are not touched.
  void (*backward)(Rows<const T> grad_pooled, const bool* padding, const float* count,
                   const Windows& windows, int64_t first, int64_t last, int64_t C,
                   Rows<T> grad_input, A* scratch);
};

/// The table of the CPU tier in use; T is double, float, c10::BFloat16 or c10::Half.
template <typename T>
const PoolKernels<T>& pool_kernels();

}  // namespace kktorch::csrc
