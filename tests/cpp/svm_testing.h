#pragma once
// Random attention-SVM problems, and literal formulas to hold the kernels against.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "csrc/svm/token_sets.h"

namespace kktorch::csrc {

/// Tokens and queries with their index; `view` looks into it.
struct SvmProblem {
  std::vector<double> x, z;
  TokenIndex index;
  std::vector<int64_t> alpha;
  int64_t N, dx, Q, dz;

  TokenSetsView<double> view() const {
    return {x.data(),
            z.data(),
            index.row_ptr.data(),
            index.tok.empty() ? nullptr : index.tok.data(),
            N,
            dx,
            Q,
            dz};
  }
  Pairs pairs() const { return pairs_of_alpha(index.row_ptr.data(), Q, alpha.data()); }
};

inline std::vector<double> unit_rows(int64_t rows, int64_t width, std::mt19937_64& generator) {
  std::normal_distribution<double> normal;
  std::vector<double> values(rows * width);
  for (int64_t i = 0; i < rows; ++i) {
    double sum = 0;
    for (int64_t c = 0; c < width; ++c) {
      values[i * width + c] = normal(generator);
      sum += values[i * width + c] * values[i * width + c];
    }
    for (int64_t c = 0; c < width; ++c) values[i * width + c] /= std::sqrt(sum);
  }
  return values;
}

/// x.y by W: x^T W z.
inline double bilinear(const double* x, const double* W, const double* z, int64_t dx, int64_t dz) {
  double sum = 0;
  for (int64_t i = 0; i < dx; ++i)
    for (int64_t j = 0; j < dz; ++j) sum += x[i] * W[i * dz + j] * z[j];
  return sum;
}

/// n queries with T tokens each on the unit sphere. Planted: alpha is the argmax of x^T W z for a
/// Gaussian W, so that the problem is feasible; otherwise alpha is drawn.
inline SvmProblem random_problem(int64_t n, int64_t T, int64_t dx, int64_t dz, uint64_t seed,
                                 bool planted = true) {
  std::mt19937_64 generator(seed);
  SvmProblem p{.x = unit_rows(n * T, dx, generator),
               .z = unit_rows(n, dz, generator),
               .index = cross_index(n, T),
               .alpha = std::vector<int64_t>(n),
               .N = n * T,
               .dx = dx,
               .Q = n,
               .dz = dz};
  const auto W = unit_rows(1, dx * dz, generator);
  std::uniform_int_distribution<int64_t> position(0, T - 1);
  for (int64_t q = 0; q < n; ++q) {
    double best = -INFINITY;
    p.alpha[q] = position(generator);
    for (int64_t t = 0; planted && t < T; ++t) {
      const double logit =
          bilinear(p.x.data() + (q * T + t) * dx, W.data(), p.z.data() + q * dz, dx, dz);
      if (logit > best) p.alpha[q] = t, best = logit;
    }
  }
  return p;
}

/// The feature a_j z_j^T of every pair, [pairs, dx dz].
inline std::vector<std::vector<double>> features(const TokenSetsView<double>& sets,
                                                 const Pairs& pairs, const EntryList& list) {
  std::vector<std::vector<double>> rows;
  for (int64_t q = 0; q < sets.Q; ++q)
    for (int64_t j = list.ptr[q]; j < list.ptr[q + 1]; ++j) {
      std::vector<double> row;
      for (int64_t i = 0; i < sets.dx; ++i)
        for (int64_t k = 0; k < sets.dz; ++k)
          row.push_back((sets.token(pairs.anchor[q])[i] - sets.token(list.entry[j])[i]) *
                        sets.query(q)[k]);
      rows.push_back(row);
    }
  return rows;
}

inline double inner(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace kktorch::csrc
