#pragma once
// Penalties of the convex programs: their value, proximal step and dual norm.
//
//     groups     sum_g |z_g|_2                  group = one (gate, output, token), d values
//     nuclear    sum_pk |Z[p,:,k,:]|_*          slices [c, d]
//     sequence   sum_lq (t+_lq + t-_lq)         C+, C- >= 0 with equal row sums t in each n x n
//     block
//
// The state Z is what the solver iterates on; the map W of the design is Z itself, and C+ - C- for
// sequences, whose state holds both.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/convex/parallel.h"

namespace kktorch::csrc {

/// What one sweep over Z-sized arrays yields besides Zn = prox(V - G / Lip), V = Z + m (Z - Zprev).
struct Sweep {
  double dz2 = 0;      ///< |Zn - V|^2
  double rdot = 0;     ///< <V - Zn, Zn - Z>
  double penalty = 0;  ///< Omega(Zn)
  double zz = 0;       ///< max(|Zn|^2, |V|^2)
};

template <typename T>
class Penalty {
 public:
  virtual ~Penalty() = default;
  virtual int64_t state_size() const = 0;
  virtual int64_t map_size() const = 0;

  /// W of a state: the state itself, or written into `buffer` [map_size].
  virtual const T* map(const T* Z, T* buffer) const = 0;

  virtual Sweep sweep(const T* Z, const T* Zprev, double m, const T* G, double lip, double beta,
                      T* Zn) const = 0;

  /// Largest constraint value of the dual at the gradient G [map_size] of Lambda.
  virtual double dual_norm(const T* G) const = 0;

  virtual double value(const T* Z) const = 0;

  /// How often a squared singular value of the design counts in that of the state's map.
  virtual double copies() const { return 1; }
};

/// d values side by side are a group; dead ones (alive[g] = 0) stay zero.
template <typename T>
class GroupPenalty : public Penalty<T> {
 public:
  GroupPenalty(int64_t groups, int64_t d, Parallel parallel);
  int64_t state_size() const override { return groups_ * d_; }
  int64_t map_size() const override { return groups_ * d_; }
  const T* map(const T* Z, T*) const override { return Z; }
  Sweep sweep(const T* Z, const T* Zprev, double m, const T* G, double lip, double beta,
              T* Zn) const override;
  double dual_norm(const T* G) const override;
  double value(const T* Z) const override;

  int64_t d() const { return d_; }
  std::vector<uint8_t>& alive() { return alive_; }
  const std::vector<uint8_t>& alive() const { return alive_; }
  double norm(const T* Z, int64_t group) const;
  bool is_zero(const T* Z, int64_t group) const {
    const T* z = Z + group * d_;
    return std::all_of(z, z + d_, [](T x) { return x == 0; });
  }

 private:
  int64_t groups_, d_;
  std::vector<uint8_t> alive_;
  Parallel parallel_;
};

template <typename T>
std::unique_ptr<Penalty<T>> nuclear_penalty(int64_t P, int64_t c, int64_t n, int64_t d,
                                            Parallel parallel);

/// State [2, n, c, n, d] = (sign, r, l, k, q), map [n, c, n, d]. With `substochastic`: row sums at
/// most t instead of equal to t, a relaxation.
template <typename T>
std::unique_ptr<Penalty<T>> sequence_penalty(int64_t c, int64_t n, int64_t d, bool substochastic,
                                             Parallel parallel);

/// Proximal step of tau t over {C >= 0, C 1 = t 1} for B [n, n], in place; returns t.
double project_block(double* B, int64_t n, double tau, bool substochastic);

}  // namespace kktorch::csrc
