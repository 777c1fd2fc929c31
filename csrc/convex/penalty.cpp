#include "csrc/convex/penalty.h"

#include <Eigen/SVD>
#include <algorithm>
#include <cmath>
#include <limits>

namespace kktorch::csrc {
namespace {

/// The partial sums of `units` sweeps in order; f(unit, sweep, V2, Zn2) adds to them.
struct Part {
  Sweep sweep;
  double v2 = 0, z2 = 0;
};

template <typename F>
Sweep summed(int64_t units, const Parallel& parallel, const F& f) {
  std::vector<Part> parts(units);
  parallel(units, [&](int64_t unit) { f(unit, parts[unit]); });
  Part total;
  for (const auto& part : parts) {
    total.sweep.dz2 += part.sweep.dz2;
    total.sweep.rdot += part.sweep.rdot;
    total.sweep.penalty += part.sweep.penalty;
    total.v2 += part.v2;
    total.z2 += part.z2;
  }
  total.sweep.zz = std::max(total.v2, total.z2);
  return total.sweep;
}

/// Adds one value of the state to the sums of a sweep.
inline void count(Part& part, double v, double z, double zn) {
  part.sweep.dz2 += (zn - v) * (zn - v);
  part.sweep.rdot += (v - zn) * (zn - z);
  part.v2 += v * v;
  part.z2 += zn * zn;
}

template <typename F>
double largest(int64_t units, const Parallel& parallel, const F& f) {
  std::vector<double> parts(units);
  parallel(units, [&](int64_t unit) { parts[unit] = f(unit); });
  return units ? *std::max_element(parts.begin(), parts.end()) : 0;
}

template <typename F>
double total(int64_t units, const Parallel& parallel, const F& f) {
  std::vector<double> parts(units);
  parallel(units, [&](int64_t unit) { parts[unit] = f(unit); });
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

/// Groups of width d that a unit of work has.
int64_t unit_of(int64_t d) { return std::max<int64_t>(1, 2048 / d); }

}  // namespace

// ---- groups ----

template <typename T>
GroupPenalty<T>::GroupPenalty(int64_t groups, int64_t d, Parallel parallel)
    : groups_(groups), d_(d), alive_(groups, 1), parallel_(std::move(parallel)) {}

template <typename T>
double GroupPenalty<T>::norm(const T* Z, int64_t group) const {
  double sum = 0;
  for (int64_t j = group * d_; j < (group + 1) * d_; ++j) sum += double(Z[j]) * Z[j];
  return std::sqrt(sum);
}

template <typename T>
Sweep GroupPenalty<T>::sweep(const T* Z, const T* Zprev, double m, const T* G, double lip,
                             double beta, T* Zn) const {
  const T step = static_cast<T>(1 / lip), momentum = static_cast<T>(m);
  const double tau = beta / lip;
  const int64_t size = unit_of(d_);
  return summed((groups_ + size - 1) / size, parallel_, [&](int64_t unit, Part& part) {
    std::vector<T> v(d_);
    const int64_t end = std::min(groups_, (unit + 1) * size);
    for (int64_t g = unit * size; g < end; ++g) {
      const T *z = Z + g * d_, *before = Zprev + g * d_, *grad = G + g * d_;
      T* out = Zn + g * d_;
      if (!alive_[g]) {
        std::fill_n(out, d_, T(0));
        continue;
      }
      double square = 0;
      for (int64_t j = 0; j < d_; ++j) {
        v[j] = z[j] + momentum * (z[j] - before[j]);
        out[j] = v[j] - step * grad[j];
        square += double(out[j]) * out[j];
      }
      const double norm = std::sqrt(square);
      const T factor = norm <= tau ? T(0) : static_cast<T>(1 - tau / norm);
      for (int64_t j = 0; j < d_; ++j) {
        out[j] *= factor;
        count(part, v[j], z[j], out[j]);
      }
      if (norm > tau) part.sweep.penalty += norm - tau;
    }
  });
}

template <typename T>
double GroupPenalty<T>::dual_norm(const T* G) const {
  const int64_t size = unit_of(d_);
  return largest((groups_ + size - 1) / size, parallel_, [&](int64_t unit) {
    double top = 0;
    const int64_t end = std::min(groups_, (unit + 1) * size);
    for (int64_t g = unit * size; g < end; ++g) top = std::max(top, norm(G, g));
    return top;
  });
}

template <typename T>
double GroupPenalty<T>::value(const T* Z) const {
  const int64_t size = unit_of(d_);
  return total((groups_ + size - 1) / size, parallel_, [&](int64_t unit) {
    double sum = 0;
    const int64_t end = std::min(groups_, (unit + 1) * size);
    for (int64_t g = unit * size; g < end; ++g) sum += norm(Z, g);
    return sum;
  });
}

template class GroupPenalty<double>;
template class GroupPenalty<float>;

// ---- nuclear norm of slices ----

namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <typename T>
class NuclearPenalty : public Penalty<T> {
 public:
  NuclearPenalty(int64_t P, int64_t c, int64_t n, int64_t d, Parallel parallel)
      : P_(P), c_(c), n_(n), d_(d), parallel_(std::move(parallel)) {}
  int64_t state_size() const override { return P_ * c_ * n_ * d_; }
  int64_t map_size() const override { return state_size(); }
  const T* map(const T* Z, T*) const override { return Z; }

  Sweep sweep(const T* Z, const T* Zprev, double m, const T* G, double lip, double beta,
              T* Zn) const override {
    const double tau = beta / lip;
    return summed(P_ * n_, parallel_, [&](int64_t unit, Part& part) {
      const Matrix z = slice(Z, unit), v = z + m * (z - slice(Zprev, unit));
      const Eigen::JacobiSVD<Matrix> svd(v - slice(G, unit) / lip,
                                         Eigen::ComputeThinU | Eigen::ComputeThinV);
      const Eigen::VectorXd s = (svd.singularValues().array() - tau).max(0.);
      const Matrix next = svd.matrixU() * s.asDiagonal() * svd.matrixV().transpose();
      part.sweep.penalty += s.sum();
      for (int64_t l = 0; l < c_; ++l)
        for (int64_t j = 0; j < d_; ++j) {
          const T value = static_cast<T>(next(l, j));
          Zn[place(unit, l) + j] = value;
          count(part, v(l, j), z(l, j), value);
        }
    });
  }

  double dual_norm(const T* G) const override {
    return largest(P_ * n_, parallel_, [&](int64_t unit) { return singular(G, unit)(0); });
  }

  double value(const T* Z) const override {
    return total(P_ * n_, parallel_, [&](int64_t unit) { return singular(Z, unit).sum(); });
  }

 private:
  int64_t place(int64_t unit, int64_t l) const {
    return ((unit / n_ * c_ + l) * n_ + unit % n_) * d_;
  }
  Matrix slice(const T* Z, int64_t unit) const {
    Matrix m(c_, d_);
    for (int64_t l = 0; l < c_; ++l)
      for (int64_t j = 0; j < d_; ++j) m(l, j) = Z[place(unit, l) + j];
    return m;
  }
  Eigen::VectorXd singular(const T* Z, int64_t unit) const {
    return Eigen::JacobiSVD<Matrix>(slice(Z, unit)).singularValues();
  }

  int64_t P_, c_, n_, d_;
  Parallel parallel_;
};

// ---- blocks of equal row sums ----

/// One row of a block, sorted descending, with the sum of its first `used` entries.
struct SortedRow {
  std::vector<double> a;
  int64_t used = 0;
  double sum = 0;

  /// theta with sum_k max(a_k - theta, 0) = t; t never falls between calls.
  double threshold(double t) {
    const int64_t n = static_cast<int64_t>(a.size());
    if (used == 0) take();
    while (used < n && a[used] >= (sum - t) / used) take();
    return (sum - t) / used;
  }
  void take() { sum += a[used++]; }
};

template <typename T>
class SequencePenalty : public Penalty<T> {
 public:
  SequencePenalty(int64_t c, int64_t n, int64_t d, bool substochastic, Parallel parallel)
      : c_(c), n_(n), d_(d), substochastic_(substochastic), parallel_(std::move(parallel)) {}
  int64_t state_size() const override { return 2 * map_size(); }
  int64_t map_size() const override { return n_ * c_ * n_ * d_; }
  double copies() const override { return 2; }

  const T* map(const T* Z, T* buffer) const override {
    const int64_t size = map_size();
    for (int64_t j = 0; j < size; ++j) buffer[j] = Z[j] - Z[size + j];
    return buffer;
  }

  Sweep sweep(const T* Z, const T* Zprev, double m, const T* G, double lip, double beta,
              T* Zn) const override {
    return summed(2 * c_ * d_, parallel_, [&](int64_t unit, Part& part) {
      std::vector<double> v(n_ * n_), block(n_ * n_);
      const double sign = unit < c_ * d_ ? 1 : -1;
      const int64_t shift = unit < c_ * d_ ? 0 : map_size(), lq = unit % (c_ * d_);
      for (int64_t r = 0; r < n_; ++r)
        for (int64_t k = 0; k < n_; ++k) {
          const int64_t at = place(lq, r, k);
          const double z = Z[shift + at];
          v[r * n_ + k] = z + m * (z - Zprev[shift + at]);
          block[r * n_ + k] = v[r * n_ + k] - sign * G[at] / lip;
        }
      part.sweep.penalty += project_block(block.data(), n_, beta / lip, substochastic_);
      for (int64_t r = 0; r < n_; ++r)
        for (int64_t k = 0; k < n_; ++k) {
          const int64_t at = shift + place(lq, r, k);
          Zn[at] = static_cast<T>(block[r * n_ + k]);
          count(part, v[r * n_ + k], Z[at], Zn[at]);
        }
    });
  }

  double dual_norm(const T* G) const override {
    return largest(2 * c_ * d_, parallel_, [&](int64_t unit) {
      const double sign = unit < c_ * d_ ? 1 : -1;
      double sum = 0;
      for (int64_t r = 0; r < n_; ++r) {
        double top = -std::numeric_limits<double>::infinity();
        for (int64_t k = 0; k < n_; ++k)
          top = std::max(top, sign * double(G[place(unit % (c_ * d_), r, k)]));
        sum += substochastic_ ? std::max(0., top) : top;
      }
      return std::max(0., sum);
    });
  }

  /// The largest row sum of each block: with equal ones, their common value.
  double value(const T* Z) const override {
    return total(2 * c_ * d_, parallel_, [&](int64_t unit) {
      double top = 0;
      for (int64_t r = 0; r < n_; ++r) {
        double sum = 0;
        for (int64_t k = 0; k < n_; ++k)
          sum += Z[(unit < c_ * d_ ? 0 : map_size()) + place(unit % (c_ * d_), r, k)];
        top = std::max(top, sum);
      }
      return top;
    });
  }

 private:
  /// Of (r, k) in block lq = l d + q: the map is [r, l, k, q].
  int64_t place(int64_t lq, int64_t r, int64_t k) const {
    return ((r * c_ + lq / d_) * n_ + k) * d_ + lq % d_;
  }

  int64_t c_, n_, d_;
  bool substochastic_;
  Parallel parallel_;
};

}  // namespace

double project_block(double* B, int64_t n, double tau, bool substochastic) {
  std::vector<SortedRow> rows(n);
  std::vector<double> theta(n);
  double tops = 0, scale = tau;
  for (int64_t r = 0; r < n; ++r) {
    rows[r].a.assign(B + r * n, B + (r + 1) * n);
    std::sort(rows[r].a.rbegin(), rows[r].a.rend());
    const double top = rows[r].a[0];
    tops += substochastic ? std::max(0., top) : top;
    scale += std::abs(top);
  }
  if (!(tops > tau)) {
    std::fill_n(B, n * n, 0.);
    return 0;
  }
  double t = 0;
  while (true) {
    double psi = -tau, slope = 0;
    for (int64_t r = 0; r < n; ++r) {
      theta[r] = rows[r].threshold(t);
      const bool counts = !substochastic || theta[r] > 0;
      psi += counts ? theta[r] : 0;
      slope += counts ? 1. / rows[r].used : 0;
    }
    if (psi <= 1e-14 * scale || !(t + psi / slope > t)) break;
    t += psi / slope;
  }
  for (int64_t r = 0; r < n; ++r)
    for (int64_t k = 0; k < n; ++k)
      B[r * n + k] =
          std::max(0., B[r * n + k] - (substochastic ? std::max(0., theta[r]) : theta[r]));
  return t;
}

template <typename T>
std::unique_ptr<Penalty<T>> nuclear_penalty(int64_t P, int64_t c, int64_t n, int64_t d,
                                            Parallel parallel) {
  return std::make_unique<NuclearPenalty<T>>(P, c, n, d, std::move(parallel));
}
template <typename T>
std::unique_ptr<Penalty<T>> sequence_penalty(int64_t c, int64_t n, int64_t d, bool substochastic,
                                             Parallel parallel) {
  return std::make_unique<SequencePenalty<T>>(c, n, d, substochastic, std::move(parallel));
}

#define INSTANTIATE(T)                                                                        \
  template std::unique_ptr<Penalty<T>> nuclear_penalty<T>(int64_t, int64_t, int64_t, int64_t, \
                                                          Parallel);                          \
  template std::unique_ptr<Penalty<T>> sequence_penalty<T>(int64_t, int64_t, int64_t, bool,   \
                                                           Parallel);
INSTANTIATE(double)
INSTANTIATE(float)
#undef INSTANTIATE

}  // namespace kktorch::csrc
