#pragma once
// Factorizations of small dense float64 matrices (row-major), by Eigen. Torch-free.
#include <cstdint>
#include <vector>

namespace kktorch::csrc {

/// Singular values of A [rows, columns], largest first.
std::vector<double> singular_values(const double* A, int64_t rows, int64_t columns);

/// A = U diag(s) V^T: U [rows, k], V [columns, k], k = min(rows, columns), s largest first.
struct Svd {
  std::vector<double> U, s, V;
};
Svd svd(const double* A, int64_t rows, int64_t columns);

/// Symmetric A [n, n] = V diag(values) V^T, V [n, n] with eigenvectors in its columns, values
/// ascending.
struct SymmetricEigen {
  std::vector<double> values, V;
};
SymmetricEigen symmetric_eigen(const double* A, int64_t n);

}  // namespace kktorch::csrc
