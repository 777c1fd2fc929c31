#include "csrc/svm/oracle.h"

#include <algorithm>
#include <cmath>

#include "csrc/svm/dense.h"

namespace kktorch::csrc {
namespace {

constexpr double kDependent = 1e-12, kReorthogonalise = 0.7;

/// QR of a changing set of unit columns: basis rows q_i, upper triangle R by columns.
class UpdatedQr {
 public:
  explicit UpdatedQr(int64_t size) : size_(size), kernels_(dense_kernels<double>()) {}

  int64_t count() const { return static_cast<int64_t>(columns_.size()); }
  const std::vector<double>& basis(int64_t i) const { return basis_[i]; }

  /// False, and nothing changes, if the column depends on the others.
  bool append(const double* column) {
    std::vector<double> rest(column, column + size_), coefficients(count() + 1);
    // Once more where much of the unit column cancels.
    double length = 0;
    for (int pass = 0; pass < 2 && length < kReorthogonalise; ++pass) {
      for (int64_t i = 0; i < count(); ++i) {
        const double c = kernels_.dot(basis_[i].data(), rest.data(), size_);
        coefficients[i] += c;
        kernels_.axpy(-c, basis_[i].data(), rest.data(), size_);
      }
      length = norm(rest);
    }
    if (length < kDependent) return false;
    for (double& value : rest) value /= length;
    coefficients.back() = length;
    basis_.push_back(std::move(rest));
    columns_.push_back(std::move(coefficients));
    return true;
  }

  /// Removes column p; plane rotations make the rest triangular again.
  void remove(int64_t p) {
    columns_.erase(columns_.begin() + p);
    for (int64_t i = p; i < count(); ++i) {
      const double a = columns_[i][i], b = columns_[i][i + 1], length = std::hypot(a, b);
      const double c = a / length, s = b / length;
      for (int64_t k = i; k < count(); ++k) {
        auto& column = columns_[k];
        const double upper = column[i], lower = column[i + 1];
        column[i] = c * upper + s * lower;
        column[i + 1] = c * lower - s * upper;
      }
      double *first = basis_[i].data(), *second = basis_[i + 1].data();
      for (int64_t k = 0; k < size_; ++k) {
        const double upper = first[k], lower = second[k];
        first[k] = c * upper + s * lower;
        second[k] = c * lower - s * upper;
      }
      columns_[i].resize(i + 1);
    }
    basis_.pop_back();
  }

  /// R x = b.
  std::vector<double> solve(std::vector<double> b) const {
    for (int64_t i = count() - 1; i >= 0; --i) {
      b[i] /= columns_[i][i];
      for (int64_t k = 0; k < i; ++k) b[k] -= b[i] * columns_[i][k];
    }
    return b;
  }

  /// R^T x = b.
  std::vector<double> solve_transposed(std::vector<double> b) const {
    for (int64_t i = 0; i < count(); ++i)
      b[i] = (b[i] - kernels_.dot(columns_[i].data(), b.data(), i)) / columns_[i][i];
    return b;
  }

 private:
  int64_t size_;
  const DenseKernels<double>& kernels_;
  std::vector<std::vector<double>> basis_, columns_;
};

/// Non-negative least squares |E u - e_last| with unit columns.
class Nnls {
 public:
  explicit Nnls(const LeastDistanceProblem& problem)
      : size_(problem.N + 1),
        count_(problem.count()),
        kernels_(dense_kernels<double>()),
        columns_(count_ * size_),
        scale_(count_),
        u_(count_),
        r_(size_),
        place_(count_, kOutside),
        qr_(size_) {
    for (int64_t j = 0; j < count_; ++j) {
      double* column = columns_.data() + j * size_;
      for (int64_t c = 0; c + 1 < size_; ++c)
        column[c] = problem.columns[j * problem.N + c] / problem.rho;
      column[size_ - 1] = problem.h[j];
      scale_[j] = norm(column, size_);
      if (scale_[j] > 0)
        for (int64_t c = 0; c < size_; ++c) column[c] /= scale_[j];
    }
    update_residual();
  }

  /// True at a solution; false when `go_on` or the limit of pivots ended it.
  bool run(const std::function<bool(int64_t)>& go_on) {
    while (pivots_ <= 5 * count_ + 50) {
      if (pivots_ % 64 == 63 && !go_on(pivots_)) return false;
      const int64_t entering = most_promising();
      if (entering < 0) return true;
      ++pivots_;
      if (!enter(entering)) {
        place_[entering] = kBanned;
        continue;
      }
      while (!step()) {
      }
      update_residual();
      std::replace(place_.begin(), place_.end(), kBanned, kOutside);
    }
    return false;
  }

  const std::vector<double>& residual() const { return r_; }
  /// Multipliers of the columns before they were scaled.
  std::vector<double> multipliers() const {
    std::vector<double> values(count_);
    for (const int64_t j : set_) values[j] = u_[j] / scale_[j];
    return values;
  }
  int64_t pivots() const { return pivots_; }

 private:
  enum Place : char { kOutside, kBanned, kInside };

  void update_residual() {
    std::fill(r_.begin(), r_.end(), 0.0);
    r_.back() = -1;
    for (const int64_t j : set_)
      kernels_.axpy(u_[j], columns_.data() + j * size_, r_.data(), size_);
  }

  int64_t most_promising() const {
    double best = 1e-13;
    int64_t found = -1;
    for (int64_t j = 0; j < count_; ++j) {
      if (place_[j] != kOutside || scale_[j] == 0) continue;
      const double w = -kernels_.dot(columns_.data() + j * size_, r_.data(), size_);
      if (w > best) best = w, found = j;
    }
    return found;
  }

  std::vector<double> least_squares() const {
    std::vector<double> rhs(set_.size());
    for (size_t i = 0; i < rhs.size(); ++i) rhs[i] = qr_.basis(i).back();
    return qr_.solve(std::move(rhs));
  }

  bool enter(int64_t j) {
    if (static_cast<int64_t>(set_.size()) >= size_) return false;
    if (!qr_.append(columns_.data() + j * size_)) return false;
    // The last coefficient of least squares is this over a positive diagonal.
    if (!(qr_.basis(qr_.count() - 1).back() > 0)) {
      qr_.remove(qr_.count() - 1);
      return false;
    }
    set_.push_back(j);
    place_[j] = kInside;
    return true;
  }

  /// Towards the least-squares solution of the set; true when it is reached.
  bool step() {
    const auto target = least_squares();
    double length = 1;
    int64_t blocking = -1;
    for (size_t i = 0; i < set_.size(); ++i) {
      if (target[i] > 0) continue;
      const double u = u_[set_[i]], a = u / (u - target[i]);
      if (blocking < 0 || a < length) length = a, blocking = static_cast<int64_t>(i);
    }
    for (size_t i = 0; i < set_.size(); ++i)
      u_[set_[i]] += (blocking < 0 ? 1 : length) * (target[i] - u_[set_[i]]);
    if (blocking < 0) {
      for (size_t i = 0; i < set_.size(); ++i) u_[set_[i]] = target[i];
      return true;
    }
    u_[set_[blocking]] = 0;
    for (int64_t i = static_cast<int64_t>(set_.size()) - 1; i >= 0; --i) {
      if (u_[set_[i]] > 0) continue;
      place_[set_[i]] = kOutside;
      u_[set_[i]] = 0;
      set_.erase(set_.begin() + i);
      qr_.remove(i);
    }
    return set_.empty();
  }

  int64_t size_, count_;
  const DenseKernels<double>& kernels_;
  std::vector<double> columns_, scale_, u_, r_;
  std::vector<Place> place_;
  std::vector<int64_t> set_;
  UpdatedQr qr_;
  int64_t pivots_ = 0;
};

}  // namespace

LeastDistanceResult solve_least_distance(const LeastDistanceProblem& problem,
                                         const std::function<bool(int64_t)>& go_on) {
  using Status = LeastDistanceResult::Status;
  Nnls nnls(problem);
  const bool solved = nnls.run(go_on);
  LeastDistanceResult result;
  result.lam = nnls.multipliers();
  result.pivots = nnls.pivots();
  const auto& r = nnls.residual();
  const double rr = dense_kernels<double>().dot(r.data(), r.data(), problem.N + 1);
  if (solved && std::sqrt(rr) <= 1 / problem.kappa_max) {
    double sum = 0;
    for (const double value : result.lam) sum += value;
    for (double& value : result.lam) value /= sum;
    result.status = Status::kInfeasible;
    return result;
  }
  result.w.assign(r.begin(), r.end() - 1);
  for (double& value : result.w) value /= rr * problem.rho;
  for (double& value : result.lam) value /= rr * problem.rho * problem.rho;
  if (solved) result.status = Status::kOptimal;
  return result;
}

bool refine_least_distance(const LeastDistanceProblem& problem, LeastDistanceResult& result) {
  const auto& kernels = dense_kernels<double>();
  UpdatedQr qr(problem.N);
  std::vector<int64_t> support;
  std::vector<double> unit(problem.N), scale;
  for (int64_t j = 0; j < problem.count(); ++j) {
    if (!(result.lam[j] > 0)) continue;
    const double* column = problem.columns.data() + j * problem.N;
    const double length = norm(column, problem.N);
    for (int64_t c = 0; c < problem.N; ++c) unit[c] = column[c] / length;
    if (qr.count() >= problem.N || !qr.append(unit.data())) return false;
    support.push_back(j);
    scale.push_back(length);
  }
  std::vector<double> rhs(support.size());
  for (size_t i = 0; i < rhs.size(); ++i) rhs[i] = 1 / scale[i];
  const auto y = qr.solve_transposed(std::move(rhs));
  result.w.assign(problem.N, 0.0);
  for (size_t i = 0; i < y.size(); ++i)
    kernels.axpy(y[i], qr.basis(i).data(), result.w.data(), problem.N);
  const auto multipliers = qr.solve(y);
  for (size_t i = 0; i < support.size(); ++i)
    result.lam[support[i]] = std::max(multipliers[i] / scale[i], 0.0);
  return true;
}

}  // namespace kktorch::csrc
