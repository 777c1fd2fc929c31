#pragma once
// Attention SVMs (Tarzanagh et al., arXiv 2308.16898), solved with a certificate. Torch-free,
// float64.
//
//     Frobenius  Wmm  = argmin |W|_F  s.t. A(W) >= 1            (one or several tokens per query)
//     nuclear    Wmm* in argmin |W|_* s.t. A(W) >= 1            (one token per query)
//     prompt     min |p| s.t. p^T (k_alpha - k_t) >= 1: tokens k, dz = 1, z = [1]
//     relaxed    min |W|_F s.t. A(W)_j >= h_j, h >= 0           (the exact oracle only)
//
// With several selected tokens, E(W) = 0 holds on the equality pairs as well. Notation and data:
// token_sets.h; what lower, upper and gap prove: certificate.h.
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "csrc/svm/certificate.h"
#include "csrc/svm/token_sets.h"

namespace kktorch::csrc {

enum class SvmStatus {
  kOptimal,       ///< gap <= tol; min A(w) = 1
  kInfeasible,    ///< lam proves that every feasible W has rho |W|_F >= kappa_max; no w
  kNotCertified,  ///< the iterate of least gap; nothing may be read from it but its bracket
  kTrivial        ///< no inequality pair: w = 0
};
const char* svm_status_name(SvmStatus status);

enum class SvmMethod {
  kAuto,    ///< the oracle where it is small, else as kDcd; nuclear: PDHG from there
  kOracle,  ///< least-distance programming, exact
  kDcd,     ///< block dual coordinate descent, interior points, polish, finish
  kPdhg     ///< primal-dual hybrid gradient, of either norm
};

/// One line of progress.
struct SvmProgress {
  const char* phase;
  int64_t iteration;
  double lower, upper, gap, seconds;
};

struct SvmSettings {
  SvmMethod method = SvmMethod::kAuto;
  SvmNorm norm = SvmNorm::kFrobenius;
  std::optional<double> tol;  ///< of the gap; default 1e-10, nuclear 1e-6
  int64_t max_epochs = 1000, max_iters = 20000, inner = 3, check_every = 10, polish_max = 4096;
  double kappa_max = 1e7, tol_sv = 1e-6;
  uint64_t seed = 0;
  bool drop_zero_pairs = false;
  bool reduce = true;  ///< work in the span of the pairs and queries where it is smaller
  double time_limit = std::numeric_limits<double>::infinity();  ///< seconds
  /// Called at every check; returning false ends the solve with reason "interrupted".
  std::function<bool(const SvmProgress&)> progress;

  double tolerance() const { return tol.value_or(norm == SvmNorm::kNuclear ? 1e-6 : 1e-10); }
};

struct SvmResult {
  SvmStatus status = SvmStatus::kNotCertified;
  std::vector<double> w;    ///< [dx, dz]; empty if infeasible
  std::vector<double> lam;  ///< [nnz], 0 at selected entries; empty if trivial
  std::vector<double> nu;   ///< [nnz], 0 but at selected entries other than the anchor
  Certificate certificate;  ///< of w and lam; with h other than 1: gap is the KKT residual
  bool support_resolved = false;
  int64_t epochs = 0, iterations = 0, zero_pairs = 0;
  double seconds = 0;
  std::string method, reason;
};

/// One problem. `h` [nnz] or null: right-hand sides of the pairs (read at unselected entries).
/// `lam0` [nnz] or null: start of the multipliers. All numbers must be finite, indices in range.
struct SvmTask {
  TokenSetsView<double> sets;
  Pairs pairs;
  const double* h = nullptr;
  const double* lam0 = nullptr;
};

/// @throws std::invalid_argument "svm_solve: expected <what>, but got <values>".
SvmResult solve_svm(const SvmTask& task, const SvmSettings& settings);

/// Every problem by itself, one thread each, in parallel; the results are those of solve_svm.
std::vector<SvmResult> solve_svms(const std::vector<SvmTask>& tasks, const SvmSettings& settings);

}  // namespace kktorch::csrc
