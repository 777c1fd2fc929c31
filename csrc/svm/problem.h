#pragma once
// What the solvers of an attention SVM share: the problem in reduced coordinates, candidates with
// their certificates, and the clock. Torch-free; not part of the interface (solve.h).
#include <chrono>
#include <memory>

#include "csrc/svm/finite_part.h"
#include "csrc/svm/solve.h"

namespace kktorch::csrc {

/// W' = Bx^T W Bz with orthonormal Bx [dx, rx], Bz [dz, rz] that span all a_j and all z_q: the
/// constraints and both norms of W = Bx W' Bz^T are those of W'.
class ReducedSets {
 public:
  /// Without `reduce`, or where nothing gets smaller, the sets themselves.
  ReducedSets(const TokenSetsView<double>& sets, const Pairs& pairs, bool reduce);
  const TokenSetsView<double>& view() const { return view_; }
  /// [dx, dz] of W' [rx, rz].
  std::vector<double> expand(const std::vector<double>& W) const;

 private:
  TokenSetsView<double> original_, view_;
  std::vector<double> x_, z_, Bx_, Bz_;  // bases empty where they are the identity
};

/// W, lam >= 0 [inequality pairs], and what they prove.
struct Candidate {
  std::vector<double> W, lam;
  Certificate c;
};

class Problem {
 public:
  Problem(const TokenSetsView<double>& sets, const Pairs& pairs);

  TokenSetsView<double> sets;
  const Pairs& pairs;
  FinitePart finite;
  int64_t M, E, rx, rz, N;          // N = rx rz
  std::vector<int64_t> pair_query;  // [M]
  std::vector<double> norms;        // [M], |a_j| |z_j|
  double rho;                       // the largest of them

  /// rows [count, rx] of a_j, and [count, rz] of z_j, for pairs of `list`.
  void gather(const EntryList& list, const std::vector<int64_t>& subset, std::vector<double>& a,
              std::vector<double>& z) const;
  std::vector<double> margins(const std::vector<double>& W) const;
  /// A*(lam), with several selected tokens its part orthogonal to S_fin.
  std::vector<double> adjoint(const std::vector<double>& lam) const;
  Certificate measure(const std::vector<double>& W, const std::vector<double>& lam,
                      SvmNorm kind) const;
  /// For W = adjoint(lam), Frobenius: no second adjoint. `margins_out` receives A(W).
  Certificate measure_dual(const std::vector<double>& W, const std::vector<double>& lam,
                           std::vector<double>* margins_out = nullptr) const;

 private:
  void form_features();

  std::vector<double> features_;  // of a small problem the rows a_j z_j^T [M, N]: longer products
};

/// Keeps `best` if its gap is smaller; before any W has positive margins, the larger kappa decides.
void keep_better(Candidate& best, Candidate&& other);

/// Time limit, interrupts and progress of one solve.
class Monitor {
 public:
  explicit Monitor(const SvmSettings& settings)
      : settings_(settings), start_(std::chrono::steady_clock::now()) {}
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  /// False when the solve is to stop; reason() then says why.
  bool report(const char* phase, int64_t iteration, const Certificate& c);
  bool stopped() const { return !reason_.empty(); }
  const std::string& reason() const { return reason_; }

 private:
  const SvmSettings& settings_;
  std::chrono::steady_clock::time_point start_;
  std::string reason_;
};

}  // namespace kktorch::csrc
