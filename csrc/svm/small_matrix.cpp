#include "csrc/svm/small_matrix.h"

#include <Eigen/Eigenvalues>
#include <Eigen/SVD>

namespace kktorch::csrc {
namespace {

using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Jacobi is the more accurate one, and fast enough while the matrix is small.
constexpr int64_t kJacobi = 24;

/// The SVD of a copy of A; `Options` as Eigen counts them.
template <typename F>
void with_svd(const double* A, int64_t rows, int64_t columns, unsigned options, const F& f) {
  const Eigen::MatrixXd matrix = Eigen::Map<const RowMatrix>(A, rows, columns);
  if (std::min(rows, columns) <= kJacobi)
    f(Eigen::JacobiSVD<Eigen::MatrixXd>(matrix, options));
  else
    f(Eigen::BDCSVD<Eigen::MatrixXd>(matrix, options));
}

std::vector<double> rows_of(const Eigen::MatrixXd& matrix) {
  std::vector<double> values(matrix.size());
  Eigen::Map<RowMatrix>(values.data(), matrix.rows(), matrix.cols()) = matrix;
  return values;
}

std::vector<double> values_of(const Eigen::VectorXd& vector) {
  return {vector.data(), vector.data() + vector.size()};
}

}  // namespace

std::vector<double> singular_values(const double* A, int64_t rows, int64_t columns) {
  std::vector<double> values;
  with_svd(A, rows, columns, 0,
           [&](const auto& found) { values = values_of(found.singularValues()); });
  return values;
}

Svd svd(const double* A, int64_t rows, int64_t columns) {
  Svd result;
  with_svd(A, rows, columns, Eigen::ComputeThinU | Eigen::ComputeThinV, [&](const auto& found) {
    result = {rows_of(found.matrixU()), values_of(found.singularValues()),
              rows_of(found.matrixV())};
  });
  return result;
}

SymmetricEigen symmetric_eigen(const double* A, int64_t n) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> found(Eigen::Map<const RowMatrix>(A, n, n));
  return {values_of(found.eigenvalues()), rows_of(found.eigenvectors())};
}

}  // namespace kktorch::csrc
