#pragma once
// The two products of a pass over the samples, on rows given by their addresses. Torch-free.
//
//     forward:   A[r, l] += sum_e F[r, e] W[l, e]        backward:   G[l, e] += sum_r R[r, l] F[r,
//     e]
//
// F: features of `rows` samples, D each. Register tiles of 4 rows (or vectors of e) times 4
// outputs.
#include <cstdint>

namespace kktorch::csrc {

template <typename T>
struct TileKernels {
  /// A row r is at A[r]; W: [c, D].
  void (*forward)(const T* const* F, int64_t rows, const T* W, int64_t c, int64_t D, T* const* A);

  /// R row r is at R[r]; G: [c, D], output l at G + l * stride.
  void (*backward)(const T* const* F, int64_t rows, const T* const* R, int64_t c, int64_t D, T* G,
                   int64_t stride);
};

/// The table of the CPU tier in use; T is double or float.
template <typename T>
const TileKernels<T>& tile_kernels();

}  // namespace kktorch::csrc
