#pragma once
// Rows: projection onto the simplex and shrinkage of groups. Torch-free.
//
//     w = argmin |w - v|^2, w >= 0, sum w = radius     w = max(y - tau, 0), y = v - max v
//     z = 0 if |u| <= tau, else (1 - tau / |u|) u
//
// The threshold tau of the simplex is the root of f(tau) = sum_k max(y_k - tau, 0) - radius, found
// by Newton's method from tau = -radius, where f >= 0: f is convex and decreasing, so the steps
// grow to the root and reach it exactly, after at most n of them. The entries that are above the
// current threshold are kept side by side, so that a step reads what is left and nothing else.
// Sums and norms are float64 for every type.
#include <cstdint>

#include "csrc/common/types.h"

namespace kktorch::csrc {

/// Kernels for storage type T on `rows` rows of `size` contiguous values.
template <typename T>
struct RowKernels {
  using A = acc_t<T>;

  /// scratch: simplex_scratch(size) values. Returns the largest number of Newton steps of a row.
  /// -inf is a masked entry; a row with NaN, with +inf, or of -inf alone becomes NaN.
  int64_t (*simplex_project)(Rows<const T> v, int64_t rows, int64_t size, double radius, Rows<T> w,
                             A* scratch);

  /// dv = 1_S (g - mean_S g), S = {w > 0}; scratch: 3 size values.
  void (*simplex_backward)(Rows<const T> grad, Rows<const T> w, int64_t rows, int64_t size,
                           Rows<T> grad_v, A* scratch);

  /// tau: of row r at tau[r * tau_stride]; scratch: 2 size values.
  void (*shrink)(Rows<const T> u, const double* tau, int64_t tau_stride, int64_t rows, int64_t size,
                 Rows<T> z, A* scratch);

  /// With e = u / |u|, where |u| > tau: du = (1 - tau/|u|) g + (tau/|u|) e (e'g), dtau = -e'g; 0
  /// elsewhere. grad_tau: of row r at grad_tau[r]; scratch: 3 size values.
  void (*shrink_backward)(Rows<const T> grad, Rows<const T> u, const double* tau,
                          int64_t tau_stride, int64_t rows, int64_t size, Rows<T> grad_u,
                          double* grad_tau, A* scratch);
};

/// Values of scratch of simplex_project.
constexpr int64_t simplex_scratch(int64_t size) { return 2 * size + 1024; }

/// The table of the CPU tier in use; T is double, float, c10::BFloat16 or c10::Half.
template <typename T>
const RowKernels<T>& row_kernels();

}  // namespace kktorch::csrc
