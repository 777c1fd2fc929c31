#include "csrc/svm/small_matrix.h"

#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>

#include "csrc/svm/dense.h"

namespace kktorch::csrc {
namespace {

using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

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
  const int64_t k = std::min(rows, columns), m = std::max(rows, columns);
  std::vector<double> G(k * m), sigma(k);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      G[rows <= columns ? i * m + j : j * m + i] = A[i * columns + j];
  dense_kernels<double>().jacobi(k, m, 0, G.data(), nullptr, sigma.data());
  for (double& value : sigma) value = std::sqrt(value);
  std::sort(sigma.rbegin(), sigma.rend());
  return sigma;
}

WarmSvd::WarmSvd(int64_t rows, int64_t columns)
    : rows_(rows),
      columns_(columns),
      k_(std::min(rows, columns)),
      long_(std::max(rows, columns)),
      unit_(k_ * k_),
      scaled_(k_ * long_),
      squares_(k_) {
  for (int64_t i = 0; i < k_; ++i) unit_[i * k_ + i] = 1;
}

void WarmSvd::decompose(const double* A) {
  // scaled = unit B with B [k, long] = A or its transpose.
  std::fill(scaled_.begin(), scaled_.end(), 0.0);
  const auto matrix = row_major(A, columns_);
  gemm(k_, long_, k_, 1, row_major(unit_.data(), k_),
       rows_ <= columns_ ? matrix : matrix.transposed(), scaled_.data(), long_);
  dense_kernels<double>().jacobi(k_, long_, k_, scaled_.data(), unit_.data(), squares_.data());
}

int64_t WarmSvd::shrink(double tau, double* W) {
  int64_t kept = 0;
  std::vector<double> left, right;
  for (int64_t i = 0; i < k_; ++i) {
    const double sigma = std::sqrt(squares_[i]);
    if (sigma <= tau) continue;
    ++kept;
    for (int64_t c = 0; c < long_; ++c) left.push_back(scaled_[i * long_ + c] * (1 - tau / sigma));
    right.insert(right.end(), unit_.begin() + i * k_, unit_.begin() + (i + 1) * k_);
  }
  std::fill_n(W, rows_ * columns_, 0.0);
  const auto scaled = row_major(left.data(), long_), unit = row_major(right.data(), k_);
  if (rows_ <= columns_)
    gemm(rows_, columns_, kept, 1, unit.transposed(), scaled, W, columns_);
  else
    gemm(rows_, columns_, kept, 1, scaled.transposed(), unit, W, columns_);
  return kept;
}

SymmetricEigen symmetric_eigen(const double* A, int64_t n) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> found(Eigen::Map<const RowMatrix>(A, n, n));
  return {values_of(found.eigenvalues()), rows_of(found.eigenvectors())};
}

std::vector<double> row_span_basis(const double* A, int64_t rows, int64_t columns, double cutoff) {
  Eigen::MatrixXd transposed = Eigen::Map<const RowMatrix>(A, rows, columns).transpose();
  if (rows > columns) {  // the triangle of a QR has the same row span
    const Eigen::HouseholderQR<Eigen::MatrixXd> qr(transposed.transpose());
    const Eigen::MatrixXd R =
        qr.matrixQR().topRows(columns).template triangularView<Eigen::Upper>();
    transposed = R.transpose();
  }
  Eigen::ColPivHouseholderQR<Eigen::MatrixXd> qr(transposed);
  qr.setThreshold(cutoff);
  const Eigen::Index rank = qr.rank();
  const Eigen::MatrixXd Q = qr.householderQ() * Eigen::MatrixXd::Identity(transposed.rows(), rank);
  return rows_of(Q);
}

}  // namespace kktorch::csrc
