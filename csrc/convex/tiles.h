#pragma once
// The two products of a pass over the samples. Torch-free.
//
// On rows given by their addresses, D features each:
//
//     forward:   A[r, l] += sum_e F[r, e] W[l, e]      backward:   G[l, e] += sum_r R[r, l] F[r, e]
//
// On some columns, a sample being a lane (kColumnRows divides `rows`); x_j: [d, rows], d columns:
//
//     weigh:     a[r] += g[r] sum_je W[j, e] x_j[e, r]   correlate:  G[e] += sum_r a[r] x[e, r]
#include <cstdint>

namespace kktorch::csrc {

template <typename T>
struct TileKernels {
  /// A row r is at A[r]; W: [c, D].
  void (*forward)(const T* const* F, int64_t rows, const T* W, int64_t c, int64_t D, T* const* A);

  /// R row r is at R[r]; G: [c, D], output l at G + l * stride.
  void (*backward)(const T* const* F, int64_t rows, const T* const* R, int64_t c, int64_t D, T* G,
                   int64_t stride);

  /// x: `groups` addresses; g may be null for ones.
  void (*weigh)(const T* const* x, const T* W, int64_t groups, int64_t d, int64_t rows, const T* g,
                T* a);
  void (*correlate)(const T* x, const T* a, int64_t d, int64_t rows, T* G);
};
inline constexpr int64_t kColumnRows = 16;

/// The table of the CPU tier in use; T is double or float.
template <typename T>
const TileKernels<T>& tile_kernels();

}  // namespace kktorch::csrc
