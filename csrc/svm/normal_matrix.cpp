#include "csrc/svm/normal_matrix.h"

#include <algorithm>
#include <cmath>

#include "csrc/common/parallel.h"
#include "csrc/svm/dense.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kQueries = 256;  // of one product of symmetric parts
constexpr int64_t kNarrow = 16;    // rows that are not worth a product of matrices
constexpr double kDefinite = 1e-14;

/// The lower triangle of A [n, n] in a row.
void pack_lower(const double* A, int64_t n, double* packed) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) *packed++ = A[i * n + j];
}

int64_t packed_index(int64_t i, int64_t j) {
  return i >= j ? i * (i + 1) / 2 + j : j * (j + 1) / 2 + i;
}

/// f(d_t, x_alpha, x_t) for the pairs of query q.
template <typename F>
void for_pairs(const Problem& problem, const std::vector<double>& d, int64_t q, const F& f) {
  const auto& list = problem.pairs.inequality;
  const double* anchor = problem.sets.token(problem.pairs.anchor[q]);
  for (int64_t j = list.ptr[q]; j < list.ptr[q + 1]; ++j)
    f(d[j], anchor, problem.sets.token(list.entry[j]));
}

/// sum_t d_t a_t a_t^T of query q, packed.
void weighted_gram(const Problem& problem, const std::vector<double>& d, int64_t q,
                   double* packed) {
  const int64_t rx = problem.rx;
  if (rx <= kNarrow) {
    std::fill_n(packed, rx * (rx + 1) / 2, 0.0);
    for_pairs(problem, d, q, [&](double weight, const double* anchor, const double* token) {
      double a[kNarrow];
      for (int64_t c = 0; c < rx; ++c) a[c] = anchor[c] - token[c];
      double* sum = packed;
      for (int64_t i = 0; i < rx; ++i) {
        for (int64_t j = 0; j <= i; ++j) sum[j] += weight * a[i] * a[j];
        sum += i + 1;
      }
    });
    return;
  }
  std::vector<double> rows, S(rx * rx);
  for_pairs(problem, d, q, [&](double weight, const double* anchor, const double* token) {
    const double root = std::sqrt(weight);
    for (int64_t c = 0; c < rx; ++c) rows.push_back(root * (anchor[c] - token[c]));
  });
  const auto view = row_major(rows.data(), rx);
  gemm(rx, rx, static_cast<int64_t>(rows.size()) / rx, 1, view.transposed(), view, S.data(), rx);
  pack_lower(S.data(), rx, packed);
}

void query_gram(const Problem& problem, int64_t q, double* packed) {
  const double* z = problem.sets.query(q);
  for (int64_t i = 0; i < problem.rz; ++i)
    for (int64_t j = 0; j <= i; ++j) *packed++ = z[i] * z[j];
}

}  // namespace

bool factor_normal_matrix(const Problem& problem, const std::vector<double>& d, double c,
                          std::vector<double>& factor) {
  const int64_t rx = problem.rx, rz = problem.rz, N = problem.N, Q = problem.sets.Q;
  const int64_t px = rx * (rx + 1) / 2, pz = rz * (rz + 1) / 2, part = std::min(kQueries, Q);
  std::vector<double> S(part * px), Z(part * pz), product(px * pz);
  for (int64_t first = 0; first < Q; first += part) {
    const int64_t count = std::min(part, Q - first);
    parallel_for(count, [&](int64_t i) {
      weighted_gram(problem, d, first + i, S.data() + i * px);
      query_gram(problem, first + i, Z.data() + i * pz);
    });
    gemm(px, pz, count, 1, row_major(S.data(), px).transposed(), row_major(Z.data(), pz),
         product.data(), pz);
  }
  factor.resize(N * N);
  double largest = 0;
  for (int64_t i = 0; i < rx; ++i)
    for (int64_t k = 0; k < rz; ++k)
      largest = std::max(largest, product[packed_index(i, i) * pz + packed_index(k, k)]);
  parallel_for(rx, [&](int64_t i) {
    for (int64_t k = 0; k < rz; ++k) {
      double* row = factor.data() + (i * rz + k) * N;
      for (int64_t j = 0; j <= i; ++j) {
        const double* block = product.data() + packed_index(i, j) * pz;
        for (int64_t l = 0; l < rz; ++l) row[j * rz + l] = block[packed_index(k, l)];
      }
      row[i * rz + k] += c;
    }
  });
  return cholesky(factor.data(), N, c > 0 ? 0 : kDefinite * largest);
}

}  // namespace kktorch::csrc
