#pragma once
// Certificates of attention SVMs. Torch-free.
//
// For any W and any lam >= 0, lam != 0, with A and A* of operators.h:
//
//     Frobenius: lower = min_j A(W)_j / |W|_F <= margin* = 1 / |Wmm|_F  <= upper = |A*(lam)|_F  /
//     sum(lam) nuclear:   lower = min_j A(W)_j / |W|_* <= margin* = 1 / |Wmm*|_* <= upper =
//     |A*(lam)|_op / sum(lam)
//
// because min_j A(W)_j sum(lam) <= <A*(lam), W> <= dual norm x norm; margin* = 0 if no W has
// A(W) > 0. Where several tokens are selected, W and A*(lam) are replaced by their parts orthogonal
// to S_fin (finite_part.h), and lam runs over the inequality pairs. Everything is recomputed from
// x, z, W and lam; nothing of a solver's state enters.
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "csrc/svm/token_sets.h"

namespace kktorch::csrc {

enum class SvmNorm { kFrobenius, kNuclear };

struct Certificate {
  double lower = std::numeric_limits<double>::infinity();
  double upper = std::numeric_limits<double>::infinity();
  /// (P - D) / P: 1 - (lower / upper)^2, nuclear 1 - lower / upper; 1 while lower <= 0.
  double gap = 0;
  /// Lower bound of cos(W, Wmm); NaN for the nuclear norm and while lower <= 0.
  double cosine = std::numeric_limits<double>::quiet_NaN();
  /// Every feasible W has rho |W|_F >= kappa = rho sum(lam) / |A*(lam)|_F; rho = max |a_j| |z_j|.
  double kappa = 0, rho = 0;
  double min_margin = std::numeric_limits<double>::infinity();
  double norm = 0, dual_norm = 0, sum_lam = 0;
  /// Frobenius, W scaled to min margin 1: |A(W) - A(Wmm)|_inf <= margin_error.
  double margin_error = 0;
  /// #{sigma(W) > 1e-4 sigma_1}; #{sigma(A*(lam)) >= (1 - 1e-4) sigma_1}; -1 where not asked for.
  int64_t rank = -1, mu = -1;

  bool feasible() const { return lower > 0; }
  /// Whether the pairs at margin 1 are known exactly (Frobenius).
  bool support_resolved(double tol_sv = 1e-6) const { return margin_error <= tol_sv / 2; }
  /// Every optimal W of the nuclear problem has rank <= mu; so `rank` is the rank.
  bool rank_certified() const { return gap <= 1e-7 && rank == mu; }
};

/// W [dx, dz]; lam [inequality pairs], >= 0. Without inequality pairs the result is trivial:
/// lower = upper = +inf, gap = 0. `ranks` asks for rank and mu. The nuclear norm needs one selected
/// token per query.
Certificate certificate(const TokenSetsView<double>& sets, const Pairs& pairs, const double* W,
                        const double* lam, SvmNorm norm, bool ranks = true);

/// Certificate::rank and ::mu of W and A*(lam), both [rows, columns].
std::pair<int64_t, int64_t> certified_ranks(const std::vector<double>& W,
                                            const std::vector<double>& dual, int64_t rows,
                                            int64_t columns);

/// What `certificate` concludes from its measurements.
Certificate bracket(double min_margin, double norm, double dual_norm, double frobenius_dual_norm,
                    double sum_lam, double rho, SvmNorm kind);

/// Whether the selected token outscores, strictly, every token at margin 1 of its query.
enum class LocalOptimality { kNo, kYes, kUnresolved };
/// margins [inequality pairs] = A(W), W scaled to min margin 1; score [nnz]; margin_error of the
/// Frobenius certificate of W.
LocalOptimality local_optimality(const Pairs& pairs, const std::vector<double>& margins,
                                 const double* score, double margin_error, double tol_sv = 1e-6);

}  // namespace kktorch::csrc
