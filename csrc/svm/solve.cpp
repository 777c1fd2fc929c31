#include "csrc/svm/solve.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <tuple>

#include "csrc/common/parallel.h"
#include "csrc/svm/dcd.h"
#include "csrc/svm/dense.h"
#include "csrc/svm/farkas.h"
#include "csrc/svm/finish.h"
#include "csrc/svm/interior.h"
#include "csrc/svm/operators.h"
#include "csrc/svm/pdhg.h"
#include "csrc/svm/problem.h"

namespace kktorch::csrc {

const char* svm_status_name(SvmStatus status) {
  switch (status) {
    case SvmStatus::kOptimal:
      return "optimal";
    case SvmStatus::kInfeasible:
      return "infeasible";
    case SvmStatus::kNotCertified:
      return "not_certified";
    case SvmStatus::kTrivial:
      break;
  }
  return "trivial";
}

namespace {

constexpr double kZeroPair = 1e-14;
constexpr int64_t kSmall = 128;  // auto: the oracle up to min(M, N + 1) of this
// Descent proves infeasibility slowly: without a separating W after this many epochs the finishing
// step takes over at once, where it is quick.
constexpr int64_t kPatience = 200, kQuickFinish = 1024;
// With so many pairs per dimension the interior-point method takes over without a separating W
// after kSeparation epochs, or where the gap is still above kSlow after kPatience.
constexpr int64_t kManyPairs = 4, kSeparation = 20;
constexpr int64_t kQuickProof = 400;  // dimensions up to which infeasibility is tried first
constexpr double kDescentGap = 1e-6;  // polish is quicker from there
constexpr double kSlow = 0.1;
constexpr double kStart = 1e-3;              // gap of the Frobenius solution that PDHG starts from
constexpr int64_t kOracleNumbers = 1 << 24;  // and up to this size of its matrix

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("svm_solve: expected " + message);
}

void check(const SvmTask& task, const SvmSettings& s) {
  const auto number = [](double value) { return std::to_string(value); };
  require(!(s.tolerance() <= 0) && !std::isnan(s.tolerance()),
          "tol > 0, but got " + number(s.tolerance()));
  require(s.max_epochs > 0 && s.max_iters > 0 && s.inner > 0 && s.check_every > 0,
          "positive max_epochs, max_iters, inner and check_every, but got " +
              std::to_string(s.max_epochs) + ", " + std::to_string(s.max_iters) + ", " +
              std::to_string(s.inner) + " and " + std::to_string(s.check_every));
  require(s.kappa_max > 1, "kappa_max > 1, but got " + number(s.kappa_max));
  const bool several = task.pairs.equality.size() > 0;
  require(!several || s.norm == SvmNorm::kFrobenius,
          "one selected token per query with the nuclear norm, but got several");
  require(
      s.norm == SvmNorm::kFrobenius || s.method == SvmMethod::kAuto || s.method == SvmMethod::kPdhg,
      "method 'auto' or 'pdhg' with the nuclear norm, but got another");
  require(!several || s.method != SvmMethod::kPdhg,
          "one selected token per query with method 'pdhg', but got several");
  require(!task.h || (s.norm == SvmNorm::kFrobenius &&
                      (s.method == SvmMethod::kAuto || s.method == SvmMethod::kOracle)),
          "h only with the Frobenius norm and method 'auto' or 'oracle', but got another");
  for (const int64_t entry : task.pairs.inequality.entry)
    require(!task.h || task.h[entry] >= 0, "h >= 0, but got " + number(task.h ? task.h[entry] : 0) +
                                               " at entry " + std::to_string(entry));
}

/// [pairs] from [nnz].
std::vector<double> of_pairs(const EntryList& list, const double* entries) {
  std::vector<double> values;
  for (const int64_t entry : list.entry) values.push_back(entries[entry]);
  return values;
}

std::vector<double> of_entries(const EntryList& list, const std::vector<double>& values,
                               int64_t nnz) {
  std::vector<double> entries(nnz);
  for (size_t j = 0; j < values.size(); ++j) entries[list.entry[j]] = values[j];
  return entries;
}

/// Pairs with |a| |z| next to 0 can satisfy nothing. Returns the first, and removes all with
/// `drop`.
int64_t find_zero_pairs(const TokenSetsView<double>& sets, Pairs& pairs, bool drop,
                        int64_t* dropped) {
  std::vector<double> norms(pairs.inequality.size());
  pair_norms(sets, pairs.anchor, pairs.inequality, norms.data());
  const double floor =
      norms.empty() ? 0 : kZeroPair * *std::max_element(norms.begin(), norms.end());
  const auto is_zero = [&](double norm) { return norm <= floor; };
  const auto found = std::find_if(norms.begin(), norms.end(), is_zero);
  if (found == norms.end()) return -1;
  if (!drop) return found - norms.begin();
  EntryList kept;
  kept.ptr.push_back(0);
  for (int64_t q = 0; q < sets.Q; ++q) {
    for (int64_t j = pairs.inequality.ptr[q]; j < pairs.inequality.ptr[q + 1]; ++j)
      if (!is_zero(norms[j])) kept.entry.push_back(pairs.inequality.entry[j]);
    kept.ptr.push_back(kept.size());
  }
  *dropped = pairs.inequality.size() - kept.size();
  pairs.inequality = std::move(kept);
  return -1;
}

/// One Frobenius or nuclear solve in reduced coordinates.
class Solve {
 public:
  Solve(const Problem& problem, const SvmSettings& settings, std::vector<double> h,
        std::vector<double> start, Monitor& monitor, SvmResult& result)
      : problem_(problem),
        settings_(settings),
        h_(std::move(h)),
        start_(std::move(start)),
        monitor_(monitor),
        result_(result) {}

  void run() {
    const bool nuclear = settings_.norm == SvmNorm::kNuclear;
    const bool pdhg = settings_.method == SvmMethod::kPdhg;
    frobenius(nuclear ? kStart : pdhg ? 10 * kStart : settings_.tolerance());
    if (!nuclear && !pdhg) return;
    if (infeasible_ || monitor_.stopped()) {
      if (nuclear && !infeasible_) best.c = problem_.measure(best.W, best.lam, settings_.norm);
      return;
    }
    result_.method = "pdhg";
    result_.iterations = primal_dual(problem_, settings_, monitor_, best);
  }

  bool infeasible() const { return infeasible_; }
  Candidate best;

 private:
  void frobenius(double tol) {
    const int64_t size = problem_.N + 1, M = problem_.M;
    const bool many = M >= kManyPairs * problem_.N && problem_.E == 0;
    if (settings_.method == SvmMethod::kAuto && h_.empty() && many && problem_.N <= kQuickProof) {
      infeasible_ = prove_infeasible(problem_, settings_, best);
      if (infeasible_) {
        result_.method = "farkas";
        return;
      }
    }
    const bool small = std::min(M, size) <= kSmall && size * M <= kOracleNumbers;
    const bool oracle = settings_.method == SvmMethod::kOracle || !h_.empty() ||
                        (settings_.method == SvmMethod::kAuto && small);
    if (oracle) {
      result_.method = "oracle";
      note(solve_by_oracle(problem_, settings_, h_, monitor_, best, &result_.iterations));
      return;
    }
    result_.method = "dcd";
    // With many more pairs than dimensions descent can be slow; Newton's matrix is then small.
    const bool interior = many && problem_.N <= settings_.polish_max;
    const int64_t all = settings_.max_epochs;
    const auto patience = interior                     ? Patience{kSeparation, kPatience, kSlow}
                          : problem_.N <= kQuickFinish ? Patience{kPatience, all, 1}
                                                       : Patience{all, all, 1};
    result_.epochs =
        descend(problem_, settings_, std::max(tol, kDescentGap), start_, patience, monitor_, best);
    if (decided(tol)) return;
    if (interior && best.c.gap > std::max(tol, kDescentGap)) {
      result_.method += "+interior";
      result_.iterations = interior_point(problem_, settings_, tol, monitor_, best);
      if (decided(tol)) return;
    }
    result_.method += "+polish";
    const bool separated = best.c.gap < 1;
    if (separated || problem_.N + 1 > settings_.polish_max) {
      polish(problem_, settings_, monitor_, best);
      if (decided(tol)) return;
    }
    result_.method += "+finish";
    note(finish(problem_, settings_, monitor_, best));
  }

  bool decided(double tol) {
    infeasible_ = best.c.kappa >= settings_.kappa_max;
    return infeasible_ || best.c.gap <= tol || monitor_.stopped();
  }

  void note(FinishStatus status) { infeasible_ = status == FinishStatus::kInfeasible; }

  const Problem& problem_;
  const SvmSettings& settings_;
  std::vector<double> h_, start_;
  Monitor& monitor_;
  SvmResult& result_;
  bool infeasible_ = false;
};

void scale(std::vector<double>& values, double factor) {
  for (double& value : values) value *= factor;
}

/// Optimal: min A(w) = 1, and lam the multipliers of that w. Otherwise what was found, as it is.
void normalise(Candidate& found, const Certificate& c, SvmNorm kind) {
  scale(found.W, 1 / c.min_margin);
  scale(found.lam,
        kind == SvmNorm::kNuclear ? 1 / c.dual_norm : c.sum_lam / (c.dual_norm * c.dual_norm));
}

/// Largest relative violation of: margins >= h, lam >= 0, lam (margins - h) = 0, W = A*(lam).
double kkt_residual(const Problem& problem, const std::vector<double>& h, const Candidate& found) {
  const auto part = problem.finite.empty() ? found.W : problem.finite.complement(found.W.data());
  const auto margins = problem.margins(part);
  auto dual = problem.adjoint(found.lam);
  const double size = norm(found.W), scale = std::max(1.0, problem.rho * size);
  const double lam_scale = std::max(1.0, size * size);
  double worst = 0;
  for (int64_t j = 0; j < problem.M; ++j) {
    worst = std::max(worst, (h[j] - margins[j]) / scale);
    worst = std::max(worst, found.lam[j] * std::abs(margins[j] - h[j]) / (lam_scale * scale));
  }
  for (int64_t i = 0; i < problem.N; ++i) dual[i] -= found.W[i];
  return std::max(worst, norm(dual) / std::max(size, 1 / problem.rho));
}

void conclude_relaxed(const Problem& problem, const std::vector<double>& h, Candidate& found,
                      SvmResult& result) {
  constexpr double kKkt = 1e-10;
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  auto& c = result.certificate;
  c = problem.measure(found.W, found.lam, SvmNorm::kFrobenius);
  c.lower = c.upper = c.cosine = kNone;
  c.margin_error = std::numeric_limits<double>::infinity();
  c.gap = kkt_residual(problem, h, found);
  if (c.gap <= kKkt) result.status = SvmStatus::kOptimal;
}

/// Status, normalisation and the certificate from the original x and z; the ranks, which bases do
/// not change, from the reduced W.
void conclude(const SvmTask& task, const Pairs& pairs, const SvmSettings& settings,
              const Problem& problem, const ReducedSets& reduced, Candidate& found,
              SvmResult& result) {
  const auto certify = [&](const std::vector<double>& W) {
    return certificate(task.sets, pairs, W.data(), found.lam.data(), settings.norm, false);
  };
  const auto ranks = certified_ranks(found.W, problem.adjoint(found.lam), problem.rx, problem.rz);
  found.W = reduced.expand(found.W);
  auto& c = result.certificate;
  c = certify(found.W);
  if (c.gap <= settings.tolerance()) {
    normalise(found, c, settings.norm);
    c = certify(found.W);
    result.status = SvmStatus::kOptimal;
    result.support_resolved = c.support_resolved(settings.tol_sv);
  }
  std::tie(c.rank, c.mu) = ranks;
}

/// nu of the equality pairs: W = A*(lam) + E*(nu) is orthogonal to S_fin.
std::vector<double> equality_multipliers(const TokenSetsView<double>& sets, const Pairs& pairs,
                                         const std::vector<double>& lam) {
  std::vector<double> W(sets.dx * sets.dz), values(pairs.equality.size());
  if (values.empty()) return values;
  pair_adjoint(sets, pairs.anchor, pairs.inequality, lam.data(), W.data());
  pair_margins(sets, pairs.anchor, pairs.equality, W.data(), values.data());
  auto nu = FinitePart(sets, pairs).solve(values.data());
  scale(nu, -1);
  return nu;
}

void conclude_infeasible(const SvmTask& task, const Pairs& pairs, std::vector<double>& lam,
                         SvmResult& result) {
  double sum = 0;
  for (const double value : lam) sum += value;
  scale(lam, 1 / sum);
  result.status = SvmStatus::kInfeasible;
  const std::vector<double> zero(task.sets.dx * task.sets.dz);
  result.certificate =
      certificate(task.sets, pairs, zero.data(), lam.data(), SvmNorm::kFrobenius, false);
  result.certificate.lower = 0;
}

SvmResult solve(const SvmTask& task, const SvmSettings& settings) {
  check(task, settings);
  Monitor monitor(settings);
  SvmResult result;
  auto pairs = task.pairs;
  const int64_t nnz = task.sets.nnz();
  const auto zero = find_zero_pairs(task.sets, pairs, settings.drop_zero_pairs, &result.zero_pairs);
  if (pairs.inequality.size() == 0) {
    result.status = SvmStatus::kTrivial;
    result.w.assign(task.sets.dx * task.sets.dz, 0.0);
    result.certificate.rank = 0;
    result.support_resolved = true;
    return result;
  }
  if (zero >= 0 && (!task.h || task.h[pairs.inequality.entry[zero]] > 0)) {
    std::vector<double> lam(pairs.inequality.size());
    lam[zero] = 1;
    result.zero_pairs = 1;
    result.reason = "zero_pair";
    conclude_infeasible(task, pairs, lam, result);
    result.lam = of_entries(pairs.inequality, lam, nnz);
    return result;
  }
  const ReducedSets reduced(task.sets, pairs, settings.reduce);
  const Problem problem(reduced.view(), pairs);
  const auto h = task.h ? of_pairs(pairs.inequality, task.h) : std::vector<double>{};
  auto start = task.lam0 ? of_pairs(pairs.inequality, task.lam0) : std::vector<double>{};
  for (double& value : start) value = std::max(value, 0.0);
  Solve solve(problem, settings, h, std::move(start), monitor, result);
  solve.run();
  auto& found = solve.best;
  result.reason = monitor.reason();
  if (solve.infeasible()) {
    conclude_infeasible(task, pairs, found.lam, result);
  } else if (h.empty()) {
    conclude(task, pairs, settings, problem, reduced, found, result);
    result.w = std::move(found.W);
  } else {
    conclude_relaxed(problem, h, found, result);
    result.w = reduced.expand(found.W);
  }
  result.nu = of_entries(pairs.equality, equality_multipliers(task.sets, pairs, found.lam), nnz);
  result.lam = of_entries(pairs.inequality, found.lam, nnz);
  result.seconds = monitor.seconds();
  return result;
}

}  // namespace

SvmResult solve_svm(const SvmTask& task, const SvmSettings& settings) {
  return solve(task, settings);
}

std::vector<SvmResult> solve_svms(const std::vector<SvmTask>& tasks, const SvmSettings& settings) {
  std::vector<SvmResult> results(tasks.size());
  parallel_for(static_cast<int64_t>(tasks.size()),
               [&](int64_t i) { results[i] = solve(tasks[i], settings); });
  return results;
}

}  // namespace kktorch::csrc
