#include "csrc/svm/problem.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "csrc/svm/dense.h"
#include "csrc/svm/operators.h"
#include "csrc/svm/small_matrix.h"

namespace kktorch::csrc {
namespace {

constexpr double kRankCutoff = 1e-12;
constexpr int64_t kExplicit = 1 << 13;  // numbers of features that stay in the fastest cache

/// Rows whose span is wanted, made when they are needed.
struct Rows {
  int64_t count, width;
  std::function<void(int64_t row, double* out)> copy;
};

/// Whether 2 width rows, evenly taken, already have full rank beyond doubt. Working without a
/// reduction is never wrong, so a cheap test by Cholesky of the Gram matrix suffices.
bool clearly_full(const Rows& rows) {
  const int64_t width = rows.width;
  if (rows.count < width) return false;
  const int64_t taken = std::min(rows.count, 2 * width);
  std::vector<double> sample(taken * width), G(width * width);
  for (int64_t i = 0; i < taken; ++i) rows.copy(i * rows.count / taken, sample.data() + i * width);
  gemm(width, width, taken, 1, row_major(sample.data(), width).transposed(),
       row_major(sample.data(), width), G.data(), width);
  double largest = 0;
  for (int64_t i = 0; i < width; ++i) largest = std::max(largest, G[i * width + i]);
  return cholesky(G.data(), width, 1e-10 * largest);
}

/// Basis [width, rank] of the rows' span; empty for the identity.
std::vector<double> span_basis(const Rows& rows, int64_t* rank) {
  *rank = rows.width;
  if (clearly_full(rows)) return {};
  std::vector<double> all(rows.count * rows.width);
  for (int64_t i = 0; i < rows.count; ++i) rows.copy(i, all.data() + i * rows.width);
  auto basis = row_span_basis(all.data(), rows.count, rows.width, kRankCutoff);
  *rank = static_cast<int64_t>(basis.size()) / rows.width;
  if (*rank == rows.width || *rank == 0) return *rank = rows.width, std::vector<double>{};
  return basis;
}

/// The differences a_j of all pairs, equality pairs last.
Rows difference_rows(const TokenSetsView<double>& sets, const Pairs& pairs) {
  const int64_t M = pairs.inequality.size();
  const auto copy = [&sets, &pairs, M](int64_t row, double* out) {
    const auto& list = row < M ? pairs.inequality : pairs.equality;
    const int64_t j = row < M ? row : row - M, q = list.query_of(j);
    const double *a = sets.token(pairs.anchor[q]), *t = sets.token(list.entry[j]);
    for (int64_t c = 0; c < sets.dx; ++c) out[c] = a[c] - t[c];
  };
  return {M + pairs.equality.size(), sets.dx, copy};
}

std::vector<double> multiply(const double* rows, int64_t count, int64_t width,
                             const std::vector<double>& basis, int64_t rank) {
  std::vector<double> product(count * rank);
  gemm(count, rank, width, 1, row_major(rows, width), row_major(basis.data(), rank), product.data(),
       rank);
  return product;
}

}  // namespace

ReducedSets::ReducedSets(const TokenSetsView<double>& sets, const Pairs& pairs, bool reduce)
    : original_(sets), view_(sets) {
  if (!reduce) return;
  const auto query = [&](int64_t q, double* out) { std::copy_n(sets.query(q), sets.dz, out); };
  Bz_ = span_basis({sets.Q, sets.dz, query}, &view_.dz);
  Bx_ = span_basis(difference_rows(sets, pairs), &view_.dx);
  if (!Bx_.empty()) {
    x_ = multiply(sets.x, sets.N, sets.dx, Bx_, view_.dx);
    view_.x = x_.data();
  }
  if (!Bz_.empty()) {
    z_ = multiply(sets.z, sets.Q, sets.dz, Bz_, view_.dz);
    view_.z = z_.data();
  }
}

std::vector<double> ReducedSets::expand(const std::vector<double>& W) const {
  auto result = W;
  int64_t columns = view_.dz;
  if (!Bz_.empty()) {
    std::vector<double> wide(view_.dx * original_.dz);
    gemm(view_.dx, original_.dz, view_.dz, 1, row_major(result.data(), view_.dz),
         row_major(Bz_.data(), view_.dz).transposed(), wide.data(), original_.dz);
    result = std::move(wide);
    columns = original_.dz;
  }
  if (!Bx_.empty()) {
    std::vector<double> tall(original_.dx * columns);
    gemm(original_.dx, columns, view_.dx, 1, row_major(Bx_.data(), view_.dx),
         row_major(result.data(), columns), tall.data(), columns);
    result = std::move(tall);
  }
  return result;
}

Problem::Problem(const TokenSetsView<double>& view, const Pairs& selected)
    : sets(view),
      pairs(selected),
      finite(sets, selected),
      M(selected.inequality.size()),
      E(selected.equality.size()),
      rx(view.dx),
      rz(view.dz),
      N(view.dx * view.dz),
      pair_query(M),
      norms(M) {
  for (int64_t q = 0; q < view.Q; ++q)
    for (int64_t j = selected.inequality.ptr[q]; j < selected.inequality.ptr[q + 1]; ++j)
      pair_query[j] = q;
  pair_norms(view, selected.anchor, selected.inequality, norms.data());
  rho = M ? *std::max_element(norms.begin(), norms.end()) : 0;
  if (M * N <= kExplicit) form_features();
}

void Problem::form_features() {
  const auto& list = pairs.inequality;
  features_.resize(M * N);
  double* row = features_.data();
  for (int64_t q = 0; q < sets.Q; ++q)
    for (int64_t j = list.ptr[q]; j < list.ptr[q + 1]; ++j) {
      const double *anchor = sets.token(pairs.anchor[q]), *other = sets.token(list.entry[j]);
      for (int64_t i = 0; i < rx; ++i)
        for (int64_t k = 0; k < rz; ++k) *row++ = (anchor[i] - other[i]) * sets.query(q)[k];
    }
}

void Problem::gather(const EntryList& list, const std::vector<int64_t>& subset,
                     std::vector<double>& a, std::vector<double>& z) const {
  a.resize(subset.size() * rx);
  z.resize(subset.size() * rz);
  for (size_t s = 0; s < subset.size(); ++s) {
    const int64_t j = subset[s];
    const int64_t q = list.query_of(j);
    const double *anchor = sets.token(pairs.anchor[q]), *other = sets.token(list.entry[j]);
    for (int64_t c = 0; c < rx; ++c) a[s * rx + c] = anchor[c] - other[c];
    std::copy_n(sets.query(q), rz, z.data() + s * rz);
  }
}

std::vector<double> Problem::margins(const std::vector<double>& W) const {
  std::vector<double> values(M);
  if (features_.empty()) {
    pair_margins(sets, pairs.anchor, pairs.inequality, W.data(), values.data());
  } else {
    const auto& kernels = dense_kernels<double>();
    for (int64_t j = 0; j < M; ++j) values[j] = kernels.dot(features_.data() + j * N, W.data(), N);
  }
  return values;
}

std::vector<double> Problem::adjoint(const std::vector<double>& lam) const {
  std::vector<double> W(N);
  if (features_.empty()) {
    pair_adjoint(sets, pairs.anchor, pairs.inequality, lam.data(), W.data());
  } else {
    const auto& kernels = dense_kernels<double>();
    for (int64_t j = 0; j < M; ++j)
      if (lam[j] != 0) kernels.axpy(lam[j], features_.data() + j * N, W.data(), N);
  }
  return finite.empty() ? W : finite.complement(W.data());
}

Certificate Problem::measure(const std::vector<double>& W, const std::vector<double>& lam,
                             SvmNorm kind) const {
  const auto part = finite.empty() ? W : finite.complement(W.data());
  const auto values = margins(part);
  const auto dual = adjoint(lam);
  const double sum = std::accumulate(lam.begin(), lam.end(), 0.0);
  const double smallest = *std::min_element(values.begin(), values.end());
  if (kind == SvmNorm::kFrobenius)
    return bracket(smallest, norm(part), norm(dual), norm(dual), sum, rho, kind);
  const auto sigma = singular_values(W.data(), rx, rz);
  return bracket(smallest, std::accumulate(sigma.begin(), sigma.end(), 0.0),
                 singular_values(dual.data(), rx, rz)[0], norm(dual), sum, rho, kind);
}

Certificate Problem::measure_dual(const std::vector<double>& W, const std::vector<double>& lam,
                                  std::vector<double>* margins_out) const {
  auto values = margins(W);
  const double size = norm(W), sum = std::accumulate(lam.begin(), lam.end(), 0.0);
  const double smallest = *std::min_element(values.begin(), values.end());
  if (margins_out) *margins_out = std::move(values);
  return bracket(smallest, size, size, size, sum, rho, SvmNorm::kFrobenius);
}

void keep_better(Candidate& best, Candidate&& other) {
  const bool better = best.W.empty() || other.c.gap < best.c.gap ||
                      (best.c.gap == 1 && other.c.gap == 1 && other.c.kappa > best.c.kappa);
  if (better) best = std::move(other);
}

bool Monitor::report(const char* phase, int64_t iteration, const Certificate& c) {
  if (stopped()) return false;
  const double elapsed = seconds();
  if (settings_.progress &&
      !settings_.progress({phase, iteration, c.lower, c.upper, c.gap, elapsed}))
    reason_ = "interrupted";
  else if (elapsed > settings_.time_limit)
    reason_ = "time_limit";
  return !stopped();
}

}  // namespace kktorch::csrc
