#pragma once
// Factorizations of small dense float64 matrices (row-major), by Eigen and by
// one-sided Jacobi. Torch-free.
#include <cstdint>
#include <vector>

namespace kktorch::csrc {

/// Singular values of A [rows, columns], largest first.
std::vector<double> singular_values(const double* A, int64_t rows, int64_t columns);

/// Singular value decompositions of a sequence of similar matrices [rows, columns]: one-sided
/// Jacobi that starts from the singular vectors of the matrix before, and is then nearly done.
class WarmSvd {
 public:
  WarmSvd(int64_t rows, int64_t columns);
  /// A = sum_i left_i right_i^T, i < k = min(rows, columns): orthogonal `scaled` rows [k, longer
  /// side] of length sigma_i, orthonormal `unit` rows [k, shorter side]; in no order.
  void decompose(const double* A);
  /// W = sum_i f(sigma_i) / sigma_i left_i right_i^T with f(s) = max(s - tau, 0): the proximal
  /// point of the nuclear norm. Returns how many sigma_i are above tau.
  int64_t shrink(double tau, double* W);

 private:
  int64_t rows_, columns_, k_, long_;
  std::vector<double> unit_, scaled_, squares_;
};

/// Symmetric A [n, n] = V diag(values) V^T, V [n, n] with eigenvectors in its columns, values
/// ascending.
struct SymmetricEigen {
  std::vector<double> values, V;
};
SymmetricEigen symmetric_eigen(const double* A, int64_t n);

/// Orthonormal basis [columns, rank] of the row span of A [rows, columns]; pivots below `cutoff` of
/// the largest count as 0.
std::vector<double> row_span_basis(const double* A, int64_t rows, int64_t columns, double cutoff);

}  // namespace kktorch::csrc
