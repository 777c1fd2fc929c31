#pragma once
// FISTA with restart for min L(A(Z)) + beta Omega(Z), A linear, with a duality gap at every
// iteration (Beck & Teboulle 2009; O'Donoghue & Candes 2015 for the restart).
//
// A is linear, so the prediction of V = Zn + m (Zn - Z) is An + m (An - AZ): one read of the
// samples yields the predictions of Zn, hence the exact objective, and the gradient at V. The
// residual at V is as good a dual candidate as any, so the gap costs no further read.
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "csrc/convex/design.h"
#include "csrc/convex/loss.h"
#include "csrc/convex/penalty.h"

namespace kktorch::csrc {

enum class Status {
  kConverged,
  kNullSolution,
  kMaxIter,
  kTimeLimit,
  kPrecisionLimit,
  kInterrupted
};

/// "converged", "null_solution", "max_iter", "time_limit", "precision_limit", "interrupted".
std::string_view status_name(Status status);

template <typename T>
struct ConvexProgram {
  const LinearMap<T>* design;
  Penalty<T>* penalty;
  Loss loss;
  Targets<T> targets;
  int64_t rows_per_sample, c;  ///< a sample has rows_per_sample rows of c outputs
  double beta;

  int64_t outputs() const { return rows_per_sample * c; }  ///< of a sample
  int64_t rows() const { return design->N() * rows_per_sample; }
};

/// The penalty of a program that has a group penalty.
template <typename T>
const GroupPenalty<T>& groups_of(const ConvexProgram<T>& program) {
  return static_cast<const GroupPenalty<T>&>(*program.penalty);
}

/// Features that a method may copy for its groups: 134 MB in float64.
inline constexpr int64_t kMostCopied = 1 << 24;

/// State of an iteration, as the history keeps it.
struct Iterate {
  int64_t iteration;
  double seconds, objective, gap;
};

template <typename T>
class Fista {
 public:
  /// @param lip  of the gradient; too small a one grows. 0: set_lip() before the first step.
  Fista(const ConvexProgram<T>& program, double lip);

  /// Starts (again) from Z, without momentum: one read.
  void start(std::vector<T> Z);

  /// One iteration: Z, its objective, and a dual point.
  void step();

  /// Whoever changes it calls start() again.
  std::vector<T>& Z() { return Z_; }

  /// Z of the iteration before, which the momentum holds.
  const std::vector<T>& previous() const { return Zprev_; }
  const std::vector<T>& G() const { return G_; }
  const std::vector<T>& R() const { return R_; }
  const std::vector<T>& predictions() const { return AZ_; }
  double objective() const { return loss_ + program_.beta * penalty_; }

  /// Of the current residual; the best so far is kept beside it.
  const DualPoint& dual() const { return dual_; }
  double dual_norm() const { return dual_norm_; }
  double best_dual() const { return best_dual_; }
  const std::vector<T>& best_multipliers() const { return multipliers_; }

  double lip() const { return lip_; }
  void set_lip(double lip) { lip_ = lip; }
  int64_t backtracks() const { return backtracks_; }
  int64_t restarts() const { return restarts_; }

 private:
  double pass(const std::vector<T>& Z, double m);
  void evaluate_dual();

  const ConvexProgram<T> program_;
  double lip_, t_ = 1, m_ = 0, loss_ = 0, penalty_ = 0, da2_ = 0, dual_norm_ = 0;
  double best_dual_;
  DualPoint dual_ = {};
  int64_t backtracks_ = 0, restarts_ = 0;
  std::vector<T> Z_, Zprev_, Zn_, map_, G_, Gn_, AZ_, AV_, An_, AVn_, R_, Rn_, multipliers_;
};

}  // namespace kktorch::csrc
