// Built once per instruction-set tier (KKTORCH_TIER). The micro-kernel keeps an 8 x 3-vector tile
// of C in registers and reads packed panels of A and B.
#include <algorithm>
#include <cstring>

#include "csrc/svm/dense.h"
#include "csrc/svm/vector.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

constexpr int64_t kTileRows = 8, kTileVectors = 3, kTileColumns = kTileVectors * kDoubles;
static_assert(kGemmRows % kTileRows == 0 && kGemmColumns % kTileColumns == 0);

/// Panels of kTileRows rows: packed[panel][p][row], rows beyond m are 0.
void pack_a(MatrixView A, int64_t m, int64_t k, double* packed) {
  for (int64_t i = 0; i < m; i += kTileRows, packed += kTileRows * k)
    for (int64_t r = 0; r < kTileRows; ++r)
      for (int64_t p = 0; p < k; ++p)
        packed[p * kTileRows + r] = i + r < m ? A.data[(i + r) * A.row + p * A.column] : 0;
}

/// Panels of kTileColumns columns: packed[panel][p][column], columns beyond n are 0.
void pack_b(MatrixView B, int64_t k, int64_t n, double* packed) {
  for (int64_t j = 0; j < n; j += kTileColumns, packed += kTileColumns * k) {
    const int64_t width = std::min(kTileColumns, n - j);
    if (B.column == 1) {
      for (int64_t p = 0; p < k; ++p) {
        std::memcpy(packed + p * kTileColumns, B.data + p * B.row + j, width * sizeof(double));
        for (int64_t c = width; c < kTileColumns; ++c) packed[p * kTileColumns + c] = 0;
      }
    } else {
      for (int64_t c = 0; c < kTileColumns; ++c)
        for (int64_t p = 0; p < k; ++p)
          packed[p * kTileColumns + c] = c < width ? B.data[p * B.row + (j + c) * B.column] : 0;
    }
  }
}

void tile(int64_t k, const double* a, const double* b, double alpha, double* C, int64_t ldc,
          int64_t rows, int64_t columns) {
  Doubles sum[kTileRows][kTileVectors] = {};
  for (int64_t p = 0; p < k; ++p, a += kTileRows, b += kTileColumns)
    for (int64_t r = 0; r < kTileRows; ++r)
      for (int64_t v = 0; v < kTileVectors; ++v) sum[r][v] += a[r] * load(b + v * kDoubles);
  if (rows == kTileRows && columns == kTileColumns) {
    for (int64_t r = 0; r < kTileRows; ++r)
      for (int64_t v = 0; v < kTileVectors; ++v) {
        double* c = C + r * ldc + v * kDoubles;
        store(c, load(c) + alpha * sum[r][v]);
      }
    return;
  }
  double spilled[kTileColumns];
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t v = 0; v < kTileVectors; ++v) store(spilled + v * kDoubles, sum[r][v]);
    for (int64_t c = 0; c < columns; ++c) C[r * ldc + c] += alpha * spilled[c];
  }
}

void gemm(int64_t m, int64_t n, int64_t k, double alpha, MatrixView A, MatrixView B, double* C,
          int64_t ldc, double* workspace) {
  double *packed_b = workspace, *packed_a = workspace + kGemmDepth * kGemmColumns;
  for (int64_t jc = 0; jc < n; jc += kGemmColumns)
    for (int64_t pc = 0; pc < k; pc += kGemmDepth) {
      const int64_t nc = std::min(kGemmColumns, n - jc), kc = std::min(kGemmDepth, k - pc);
      pack_b({B.data + pc * B.row + jc * B.column, B.row, B.column}, kc, nc, packed_b);
      for (int64_t ic = 0; ic < m; ic += kGemmRows) {
        const int64_t mc = std::min(kGemmRows, m - ic);
        pack_a({A.data + ic * A.row + pc * A.column, A.row, A.column}, mc, kc, packed_a);
        for (int64_t j = 0; j < nc; j += kTileColumns)
          for (int64_t i = 0; i < mc; i += kTileRows)
            tile(kc, packed_a + i * kc, packed_b + j * kc, alpha, C + (ic + i) * ldc + jc + j, ldc,
                 std::min(kTileRows, mc - i), std::min(kTileColumns, nc - j));
      }
    }
}

double dot_kernel(const double* a, const double* b, int64_t n) { return dot(a, b, n); }

double difference_dot(const double* a, const double* b, const double* y, int64_t n) {
  return sum_of(
      n, [=](int64_t i) { return (load(a + i) - load(b + i)) * load(y + i); },
      [=](int64_t i) { return (a[i] - b[i]) * y[i]; });
}

double difference_square(const double* a, const double* b, int64_t n) {
  const auto vector = [=](int64_t i) {
    const Doubles difference = load(a + i) - load(b + i);
    return difference * difference;
  };
  return sum_of(n, vector, [=](int64_t i) { return (a[i] - b[i]) * (a[i] - b[i]); });
}

void axpy_kernel(double s, const double* x, double* y, int64_t n) { axpy(s, x, y, n); }

/// a = c a - s b, b = s a + c b.
inline void rotate(double* a, double* b, double c, double s, int64_t n) {
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    const Doubles x = load(a + i), y = load(b + i);
    store(a + i, c * x - s * y);
    store(b + i, s * x + c * y);
  }
  for (; i < n; ++i) {
    const double x = a[i], y = b[i];
    a[i] = c * x - s * y;
    b[i] = s * x + c * y;
  }
}

// Hestenes 1958; the rotation that makes rows i and j orthogonal has t = tan(angle) with
// t^2 + 2 zeta t - 1 = 0, zeta = (|g_j|^2 - |g_i|^2) / (2 g_i.g_j).
void jacobi(int64_t k, int64_t m, int64_t n, double* G, double* V, double* squares) {
  constexpr double kOrthogonal = 1e-15;
  constexpr int kSweeps = 60;
  bool rotated = true;
  for (int pass = 0; pass < kSweeps && rotated; ++pass) {
    rotated = false;
    for (int64_t i = 0; i < k; ++i) squares[i] = dot(G + i * m, G + i * m, m);
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = i + 1; j < k; ++j) {
        const double c = dot(G + i * m, G + j * m, m), product = squares[i] * squares[j];
        if (!(c * c > kOrthogonal * kOrthogonal * product) || product == 0) continue;
        rotated = true;
        const double zeta = (squares[j] - squares[i]) / (2 * c);
        const double size = zeta < 0 ? -zeta : zeta;
        const double t = (zeta < 0 ? -1 : 1) / (size + __builtin_sqrt(1 + size * size));
        const double cosine = 1 / __builtin_sqrt(1 + t * t);
        rotate(G + i * m, G + j * m, cosine, cosine * t, m);
        if (V) rotate(V + i * n, V + j * n, cosine, cosine * t, n);
        squares[i] -= t * c;
        squares[j] += t * c;
      }
  }
  for (int64_t i = 0; i < k; ++i) squares[i] = dot(G + i * m, G + i * m, m);
}

}  // namespace

template <typename T>
DenseKernels<T> dense_kernels() {
  return {dot_kernel, difference_dot, difference_square, axpy_kernel, gemm, jacobi};
}
template DenseKernels<double> dense_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
