#pragma once
// Dense float64 kernels of the attention-SVM solvers: products of vectors, of matrices, and the
// Cholesky factorization of large Gram matrices. Torch-free. Results do not depend on the number of
// threads.
#include <cstdint>
#include <vector>

#include "csrc/common/types.h"

namespace kktorch::csrc {

/// A(i, j) = data[i * row + j * column].
struct MatrixView {
  const double* data;
  int64_t row, column;
  MatrixView transposed() const { return {data, column, row}; }
};
inline MatrixView row_major(const double* data, int64_t width) { return {data, width, 1}; }

/// Kernels of one instruction-set tier, T = double.
template <typename T>
struct DenseKernels {
  T (*dot)(const T* a, const T* b, int64_t n);
  /// (a - b).y; differences first, so that equal tokens give exactly 0.
  T (*difference_dot)(const T* a, const T* b, const T* y, int64_t n);
  /// |a - b|^2.
  T (*difference_square)(const T* a, const T* b, int64_t n);
  /// y += s x.
  void (*axpy)(T s, const T* x, T* y, int64_t n);
  /// C[m, n] += alpha A[m, k] B[k, n]; C has contiguous rows at distance ldc. workspace:
  /// kGemmWorkspace numbers, 64-byte aligned.
  void (*gemm)(int64_t m, int64_t n, int64_t k, T alpha, MatrixView A, MatrixView B, T* C,
               int64_t ldc, T* workspace);
  /// One-sided Jacobi: plane rotations of the rows of G [k, m] until they are orthogonal to
  /// rounding, applied to the rows of V [k, n] as well; V may be null. squares: [k], receives
  /// |g_i|^2.
  void (*jacobi)(int64_t k, int64_t m, int64_t n, T* G, T* V, T* squares);
};
inline constexpr int64_t kGemmRows = 96, kGemmDepth = 256, kGemmColumns = 480;
inline constexpr int64_t kGemmWorkspace = kGemmDepth * (kGemmRows + kGemmColumns);

/// The table of the CPU tier in use; T is double.
template <typename T>
const DenseKernels<T>& dense_kernels();

/// C[m, n] += alpha A[m, k] B[k, n], C row-major at distance ldc; parallel over blocks of C.
void gemm(int64_t m, int64_t n, int64_t k, double alpha, MatrixView A, MatrixView B, double* C,
          int64_t ldc);

double norm(const double* a, int64_t n);
inline double norm(const std::vector<double>& a) { return norm(a.data(), a.size()); }

/// A = L L^T in the lower triangle of A[n, n], in place. False if a pivot is not above
/// `floor`, A is then undefined.
bool cholesky(double* A, int64_t n, double floor);
/// Solves L L^T x = b in place, with the factor that cholesky left in the lower triangle.
void cholesky_solve(const double* L, int64_t n, double* b);

}  // namespace kktorch::csrc
