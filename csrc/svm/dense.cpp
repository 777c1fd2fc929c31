#include "csrc/svm/dense.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

#include "csrc/common/parallel.h"
#include "csrc/common/tier_dispatch.h"

namespace kktorch::csrc {

KKTORCH_DEFINE_TIERED(DenseKernels, dense_kernels)

template const DenseKernels<double>& dense_kernels<double>();

namespace {

/// The packing buffer of this thread.
double* gemm_workspace() {
  struct alignas(64) Line {
    double values[8];
  };
  static thread_local std::vector<Line> lines(kGemmWorkspace / 8 + 1);
  return lines[0].values;
}

/// A small C with a long sum: parts of the sum, added in order.
void gemm_by_depth(int64_t m, int64_t n, int64_t k, double alpha, MatrixView A, MatrixView B,
                   double* C, int64_t ldc) {
  constexpr int64_t kParts = 8;
  const int64_t depth = (k + kParts - 1) / kParts;
  std::vector<double> parts(kParts * m * n);
  parallel_for(kParts, [&](int64_t part) {
    const int64_t first = part * depth;
    dense_kernels<double>().gemm(m, n, std::min(depth, k - first), alpha,
                                 {A.data + first * A.column, A.row, A.column},
                                 {B.data + first * B.row, B.row, B.column},
                                 parts.data() + part * m * n, n, gemm_workspace());
  });
  for (int64_t part = 0; part < kParts; ++part)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) C[i * ldc + j] += parts[(part * m + i) * n + j];
}

}  // namespace

void gemm(int64_t m, int64_t n, int64_t k, double alpha, MatrixView A, MatrixView B, double* C,
          int64_t ldc) {
  if (m == 0 || n == 0 || k == 0) return;
  if (k >= 8 * std::max(m, n) && m * n * k > (1 << 20))
    return gemm_by_depth(m, n, k, alpha, A, B, C, ldc);
  // Blocks of rows and columns of C; small products are one block.
  const auto& kernels = dense_kernels<double>();
  const bool split = max_threads() > 1 && m * n * k > (1 << 20);
  const int64_t rows = split ? kGemmRows * std::max<int64_t>(1, m / (8 * kGemmRows)) : m;
  const int64_t columns = split && m <= kGemmRows ? kGemmColumns : n;
  const int64_t row_blocks = (m + rows - 1) / rows,
                blocks = row_blocks * ((n + columns - 1) / columns);
  parallel_for(blocks, [&](int64_t block) {
    const int64_t i = block % row_blocks * rows, j = block / row_blocks * columns;
    kernels.gemm(std::min(rows, m - i), std::min(columns, n - j), k, alpha,
                 {A.data + i * A.row, A.row, A.column}, {B.data + j * B.column, B.row, B.column},
                 C + i * ldc + j, ldc, gemm_workspace());
  });
}

double norm(const double* a, int64_t n) { return std::sqrt(dense_kernels<double>().dot(a, a, n)); }

namespace {

/// One diagonal block, with the rows below it still to be divided.
bool factor_block(double* A, int64_t n, int64_t lda, double floor) {
  const auto& kernels = dense_kernels<double>();
  for (int64_t j = 0; j < n; ++j) {
    double* row = A + j * lda;
    const double pivot = row[j] - kernels.dot(row, row, j);
    if (!(pivot > floor)) return false;
    row[j] = std::sqrt(pivot);
    for (int64_t i = j + 1; i < n; ++i)
      A[i * lda + j] = (A[i * lda + j] - kernels.dot(A + i * lda, row, j)) / row[j];
  }
  return true;
}

}  // namespace

bool cholesky(double* A, int64_t n, double floor) {
  constexpr int64_t kBlock = 96;
  const auto& kernels = dense_kernels<double>();
  for (int64_t j = 0; j < n; j += kBlock) {
    const int64_t width = std::min(kBlock, n - j), below = n - j - width;
    if (!factor_block(A + j * n + j, width, n, floor)) return false;
    double* panel = A + (j + width) * n + j;
    // Rows below: solve X L^T = panel.
    parallel_for((below + 31) / 32, [&](int64_t chunk) {
      for (int64_t i = chunk * 32; i < std::min(below, chunk * 32 + 32); ++i)
        for (int64_t c = 0; c < width; ++c) {
          const double* L = A + (j + c) * n + j;
          double* row = panel + i * n;
          row[c] = (row[c] - kernels.dot(row, L, c)) / L[c];
        }
    });
    // Trailing lower triangle, by blocks of rows.
    const int64_t blocks = (below + kBlock - 1) / kBlock;
    parallel_for(blocks, [&](int64_t b) {
      const int64_t i = (blocks - 1 - b) * kBlock, rows = std::min(kBlock, below - i);
      kernels.gemm(rows, i + rows, width, -1, row_major(panel + i * n, n),
                   row_major(panel, n).transposed(), A + (j + width + i) * n + j + width, n,
                   gemm_workspace());
    });
  }
  return true;
}

void cholesky_solve(const double* L, int64_t n, double* b) {
  const auto& kernels = dense_kernels<double>();
  for (int64_t i = 0; i < n; ++i) b[i] = (b[i] - kernels.dot(L + i * n, b, i)) / L[i * n + i];
  for (int64_t i = n - 1; i >= 0; --i) {
    b[i] /= L[i * n + i];
    kernels.axpy(-b[i], L + i * n, b, i);
  }
}

}  // namespace kktorch::csrc
