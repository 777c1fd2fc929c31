#pragma once
// One read of the tokens for the margin tracker of attention (the bracket that it serves: Tarzanagh
// et al., arXiv 2308.16898; here ops/attn_margin.h and ops/attn_dual.h). Torch-free.
//
// Query q sees the tokens x_t, t in its set, and has the vector y_q = W z_q:
//
//     L_t = x_t.y_q      m_t = L_alpha - L_t      s = softmax(scale L)      H = -sum_t s_t log s_t
//     u_q = sum_{t != alpha} [g_t]+ (x_alpha - x_t)      mass_q = sum_{t != alpha} [g_t]+
//
// Tokens are read in their storage type; all arithmetic is float64.
#include <cstdint>

#include "csrc/svm/token_sets.h"

namespace kktorch::csrc {

/// What a pass over the logits finds. A query with a logit that is not finite has NaN for every
/// number, and `selected` 0 unless it was given.
struct MarginOutputs {
  double* margin;       ///< [nnz]
  int64_t* selected;    ///< [Q], the position of alpha in its set; the argmax of L, ties: the first
  double* least;        ///< [Q], the smallest margin of the other tokens; +inf without any
  int64_t* least_at;    ///< [Q], its position; -1 without any
  double* probability;  ///< [Q], max_t s_t
  double* entropy;      ///< [Q]
  double* longest;      ///< [Q], max_t |x_t|
};

/// Kernels for storage type T, on the queries [first, last); z is not read.
template <typename T>
struct TrackerKernels {
  /// y: [Q, dx]; given: [Q] positions of alpha, or null for the argmax.
  void (*margins)(const TokenSetsView<T>& sets, const double* y, const int64_t* given, double scale,
                  int64_t first, int64_t last, const MarginOutputs& out);
  /// g: [nnz]; u: [Q, dx]; tokens of weight 0 are not read.
  void (*dual)(const TokenSetsView<T>& sets, const int64_t* alpha, const double* g, int64_t first,
               int64_t last, double* u, double* mass);
};

/// The table of the CPU tier in use; T is double, float, c10::BFloat16 or c10::Half.
template <typename T>
const TrackerKernels<T>& tracker_kernels();

}  // namespace kktorch::csrc
