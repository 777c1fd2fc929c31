#include "csrc/svm/finite_part.h"

#include <algorithm>

#include "csrc/svm/dense.h"
#include "csrc/svm/operators.h"
#include "csrc/svm/small_matrix.h"

namespace kktorch::csrc {
namespace {

constexpr double kCutoff = 1e-10;

std::vector<double> equality_gram(const TokenSetsView<double>& sets, const Pairs& pairs) {
  const auto& list = pairs.equality;
  const int64_t E = list.size(), dx = sets.dx, dz = sets.dz;
  std::vector<double> a(E * dx), z(E * dz), G(E * E);
  for (int64_t q = 0; q < sets.Q; ++q)
    for (int64_t e = list.ptr[q]; e < list.ptr[q + 1]; ++e) {
      const double *anchor = sets.token(pairs.anchor[q]), *other = sets.token(list.entry[e]);
      for (int64_t c = 0; c < dx; ++c) a[e * dx + c] = anchor[c] - other[c];
      std::copy_n(sets.query(q), dz, z.data() + e * dz);
    }
  pair_gram(a.data(), z.data(), E, dx, dz, G.data());
  return G;
}

}  // namespace

FinitePart::FinitePart(const TokenSetsView<double>& sets, const Pairs& pairs)
    : sets_(sets), pairs_(pairs) {
  const int64_t E = pairs.equality.size();
  if (E == 0) return;
  auto eigen = symmetric_eigen(equality_gram(sets, pairs).data(), E);
  vectors_ = std::move(eigen.V);
  inverse_.resize(E);
  const double floor = kCutoff * std::max(eigen.values.back(), 0.0);
  for (int64_t i = 0; i < E; ++i) inverse_[i] = eigen.values[i] > floor ? 1 / eigen.values[i] : 0;
}

std::vector<double> FinitePart::solve(const double* rhs) const {
  const int64_t E = pairs_.equality.size();
  std::vector<double> coefficients(E), nu(E);
  const auto V = row_major(vectors_.data(), E);
  gemm(E, 1, E, 1, V.transposed(), row_major(rhs, 1), coefficients.data(), 1);
  for (int64_t i = 0; i < E; ++i) coefficients[i] *= inverse_[i];
  gemm(E, 1, E, 1, V, row_major(coefficients.data(), 1), nu.data(), 1);
  return nu;
}

std::vector<double> FinitePart::minimum_norm(const double* rhs) const {
  std::vector<double> W(sets_.dx * sets_.dz);
  if (!empty()) pair_adjoint(sets_, pairs_.anchor, pairs_.equality, solve(rhs).data(), W.data());
  return W;
}

std::vector<double> FinitePart::project(const double* W) const {
  const int64_t size = sets_.dx * sets_.dz;
  std::vector<double> projected(size);
  if (empty()) return projected;
  // A second pass on the remainder removes the rounding error of the first.
  std::vector<double> rest(W, W + size), values(pairs_.equality.size());
  for (int pass = 0; pass < 2; ++pass) {
    pair_margins(sets_, pairs_.anchor, pairs_.equality, rest.data(), values.data());
    const auto step = minimum_norm(values.data());
    for (int64_t i = 0; i < size; ++i) {
      projected[i] += step[i];
      rest[i] -= step[i];
    }
  }
  return projected;
}

std::vector<double> FinitePart::complement(const double* W) const {
  auto rest = project(W);
  for (size_t i = 0; i < rest.size(); ++i) rest[i] = W[i] - rest[i];
  return rest;
}

}  // namespace kktorch::csrc
