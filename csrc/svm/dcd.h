#pragma once
// Block dual coordinate descent with shrinking for the Frobenius attention SVM (the method of
// Hsieh, Chang, Lin, Keerthi and Sundararajan, ICML 2008, with one block per query). Torch-free.
//
//     max sum(lam) - |A*(lam) + E*(nu)|_F^2 / 2,  lam >= 0, nu free          W = A*(lam) + E*(nu)
//
// A block reads y = W z_q once, runs `inner` sweeps over its pairs on y alone, and returns what has
// changed as one rank-1 update of W. Pairs at lam = 0 that are far from violated rest; every
// certificate wakes those that are violated after all, and is followed by conjugate gradients on
// the pairs with lam > 0 (face.h). Stops when the certificate on all pairs has gap <= tol. Epoch
// cost Q (2 dx dz + 2 inner L dx), L active pairs per query; memory M dx + dx dz.
#include "csrc/svm/problem.h"

namespace kktorch::csrc {

/// The state of one problem; W is held transposed, [rz, rx].
struct DcdState {
  int64_t Q, rx, rz, inner;
  const double *a, *step;  ///< [M, rx], 1 / (|a_j|^2 |z_j|^2)
  const double *e, *ee;    ///< equality pairs, and |e_j|^2
  const double *z, *zz;
  const int64_t *ptr, *equality_ptr;
  double *W, *lam, *nu;
  int64_t *active, *active_count;  ///< pairs of q at active[ptr[q]] ...
  const int64_t* order;            ///< queries of this epoch
  int64_t order_count;
  uint64_t random;  ///< state of the generator of the orders inside a block
  double bound;     ///< pairs at 0 with a gradient above rest
  double largest;   ///< projected gradient of the first sweeps
  double *y, *du;   ///< [rx]; W z of the current query, and y before it changed or u
};

/// Kernels of one instruction-set tier, T = double.
template <typename T>
struct DcdKernels {
  void (*epoch)(DcdState& state);
};
template <typename T>
const DcdKernels<T>& dcd_kernels();

/// When descent leaves a problem to others: no separating W, or a gap above `slow`, after so many
/// epochs.
struct Patience {
  int64_t separation, convergence;
  double slow;
  bool is_over(int64_t epoch, double gap) const {
    return (epoch >= separation && gap == 1) || (epoch >= convergence && gap > slow);
  }
};

/// Improves `best` until gap <= tol or the limits of `settings` and `patience`; returns the epochs.
/// `start`: [M] >= 0 or empty.
int64_t descend(const Problem& problem, const SvmSettings& settings, double tol,
                const std::vector<double>& start, const Patience& patience, Monitor& monitor,
                Candidate& best);

}  // namespace kktorch::csrc
