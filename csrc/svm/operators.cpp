#include "csrc/svm/operators.h"

#include <cmath>

#include "csrc/common/parallel.h"
#include "csrc/svm/dense.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kQueries = 64;  // of one block

/// f(first, last) on blocks of queries, in parallel.
template <typename F>
void for_query_blocks(int64_t Q, const F& f) {
  parallel_for((Q + kQueries - 1) / kQueries,
               [&](int64_t block) { f(block * kQueries, std::min(Q, (block + 1) * kQueries)); });
}

}  // namespace

void pair_margins(const TokenSetsView<double>& sets, const std::vector<int64_t>& anchor,
                  const EntryList& list, const double* W, double* margins) {
  const auto& kernels = dense_kernels<double>();
  const int64_t dx = sets.dx, dz = sets.dz;
  for_query_blocks(sets.Q, [&](int64_t first, int64_t last) {
    if (list.ptr[first] == list.ptr[last]) return;
    std::vector<double> y((last - first) * dx);
    gemm(last - first, dx, dz, 1, row_major(sets.query(first), dz), row_major(W, dz).transposed(),
         y.data(), dx);
    for (int64_t q = first; q < last; ++q)
      for (int64_t j = list.ptr[q]; j < list.ptr[q + 1]; ++j)
        margins[j] = kernels.difference_dot(sets.token(anchor[q]), sets.token(list.entry[j]),
                                            y.data() + (q - first) * dx, dx);
  });
}

void pair_adjoint(const TokenSetsView<double>& sets, const std::vector<int64_t>& anchor,
                  const EntryList& list, const double* lam, double* W) {
  const auto& kernels = dense_kernels<double>();
  const int64_t dx = sets.dx, dz = sets.dz;
  std::vector<double> u(sets.Q * dx);
  for_query_blocks(sets.Q, [&](int64_t first, int64_t last) {
    std::vector<double> difference(dx);
    for (int64_t q = first; q < last; ++q)
      for (int64_t j = list.ptr[q]; j < list.ptr[q + 1]; ++j) {
        if (lam[j] == 0) continue;
        const double *a = sets.token(anchor[q]), *t = sets.token(list.entry[j]);
        for (int64_t c = 0; c < dx; ++c) difference[c] = a[c] - t[c];
        kernels.axpy(lam[j], difference.data(), u.data() + q * dx, dx);
      }
  });
  std::fill_n(W, dx * dz, 0.0);
  gemm(dx, dz, sets.Q, 1, row_major(u.data(), dx).transposed(), row_major(sets.z, dz), W, dz);
}

void pair_norms(const TokenSetsView<double>& sets, const std::vector<int64_t>& anchor,
                const EntryList& list, double* norms) {
  const auto& kernels = dense_kernels<double>();
  for_query_blocks(sets.Q, [&](int64_t first, int64_t last) {
    for (int64_t q = first; q < last; ++q) {
      if (list.ptr[q] == list.ptr[q + 1]) continue;
      const double zz = norm(sets.query(q), sets.dz);
      for (int64_t j = list.ptr[q]; j < list.ptr[q + 1]; ++j)
        norms[j] = zz * std::sqrt(kernels.difference_square(sets.token(anchor[q]),
                                                            sets.token(list.entry[j]), sets.dx));
    }
  });
}

void pair_differences(const TokenSetsView<double>& sets, const std::vector<int64_t>& anchor,
                      const EntryList& list, double* rows) {
  for_query_blocks(sets.Q, [&](int64_t first, int64_t last) {
    for (int64_t q = first; q < last; ++q)
      for (int64_t j = list.ptr[q]; j < list.ptr[q + 1]; ++j) {
        const double *a = sets.token(anchor[q]), *t = sets.token(list.entry[j]);
        for (int64_t c = 0; c < sets.dx; ++c) rows[j * sets.dx + c] = a[c] - t[c];
      }
  });
}

void pair_gram(const double* a, const double* z, int64_t count, int64_t dx, int64_t dz, double* G) {
  std::fill_n(G, count * count, 0.0);
  gemm(count, count, dx, 1, row_major(a, dx), row_major(a, dx).transposed(), G, count);
  constexpr int64_t kRows = 64;
  parallel_for((count + kRows - 1) / kRows, [&](int64_t block) {
    const int64_t first = block * kRows, rows = std::min(kRows, count - first);
    std::vector<double> zz(rows * count);
    gemm(rows, count, dz, 1, row_major(z + first * dz, dz), row_major(z, dz).transposed(),
         zz.data(), count);
    for (int64_t i = 0; i < rows * count; ++i) G[first * count + i] *= zz[i];
  });
}

}  // namespace kktorch::csrc
