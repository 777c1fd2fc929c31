#include "csrc/svm/dcd.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>

#include "csrc/common/tier_dispatch.h"
#include "csrc/svm/dense.h"
#include "csrc/svm/face.h"
#include "csrc/svm/operators.h"

namespace kktorch::csrc {

KKTORCH_DEFINE_TIERED(DcdKernels, dcd_kernels)

template const DcdKernels<double>& dcd_kernels<double>();

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<int64_t> range(int64_t count) {
  std::vector<int64_t> indices(count);
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

std::vector<double> row_squares(const double* rows, int64_t count, int64_t width) {
  std::vector<double> squares(count);
  for (int64_t i = 0; i < count; ++i)
    squares[i] = dense_kernels<double>().dot(rows + i * width, rows + i * width, width);
  return squares;
}

/// Memory that its first writer touches first.
std::unique_ptr<double[]> numbers(int64_t count) {
  return std::make_unique_for_overwrite<double[]>(static_cast<size_t>(count));
}

/// Buffers of one descent, and the state that looks into them.
class Descent {
 public:
  Descent(const Problem& problem, const SvmSettings& settings, const std::vector<double>& start)
      : problem_(problem),
        random_(settings.seed),
        lam_(start.empty() ? std::vector<double>(problem.M) : start),
        nu_(problem.E),
        W_(problem.N),
        scratch_(2 * problem.rx),
        counts_(problem.sets.Q),
        a_(numbers(problem.M * problem.rx)),
        e_(numbers(problem.E * problem.rx)),
        step_(problem.M) {
    const auto& pairs = problem.pairs;
    pair_differences(problem.sets, pairs.anchor, pairs.inequality, a_.get());
    pair_differences(problem.sets, pairs.anchor, pairs.equality, e_.get());
    ee_ = row_squares(e_.get(), problem.E, problem.rx);
    zz_ = row_squares(problem.sets.z, problem.sets.Q, problem.rz);
    for (int64_t j = 0; j < problem.M; ++j) step_[j] = 1 / (problem.norms[j] * problem.norms[j]);
    active_ = range(problem.M);
    for (int64_t q = 0; q < problem.sets.Q; ++q)
      counts_[q] = problem.pairs.inequality.ptr[q + 1] - problem.pairs.inequality.ptr[q];
    state_ = {.Q = problem.sets.Q,
              .rx = problem.rx,
              .rz = problem.rz,
              .inner = settings.inner,
              .a = a_.get(),
              .step = step_.data(),
              .e = e_.get(),
              .ee = ee_.data(),
              .z = problem.sets.z,
              .zz = zz_.data(),
              .ptr = problem.pairs.inequality.ptr.data(),
              .equality_ptr = problem.pairs.equality.ptr.data(),
              .W = W_.data(),
              .lam = lam_.data(),
              .nu = nu_.data(),
              .active = active_.data(),
              .active_count = counts_.data(),
              .order = nullptr,
              .order_count = 0,
              .random = 0,
              .bound = kInfinity,
              .largest = 0,
              .y = scratch_.data(),
              .du = scratch_.data() + problem.rx};
    rebuild();
  }

  void epoch() {
    order_.clear();
    const auto& equality = problem_.pairs.equality.ptr;
    for (int64_t q = 0; q < problem_.sets.Q; ++q)
      if (counts_[q] > 0 || equality[q + 1] > equality[q]) order_.push_back(q);
    std::shuffle(order_.begin(), order_.end(), random_);
    state_.order = order_.data();
    state_.order_count = static_cast<int64_t>(order_.size());
    state_.random = random_() | 1;
    state_.largest = -kInfinity;
    dcd_kernels<double>().epoch(state_);
    state_.bound = state_.largest > 0 ? state_.largest : kInfinity;
  }

  /// W from lam and nu, without the drift of the updates.
  void rebuild() {
    std::vector<double> W(problem_.N), part(problem_.N);
    pair_adjoint(problem_.sets, problem_.pairs.anchor, problem_.pairs.inequality, lam_.data(),
                 W.data());
    if (problem_.E > 0) {
      pair_adjoint(problem_.sets, problem_.pairs.anchor, problem_.pairs.equality, nu_.data(),
                   part.data());
      for (int64_t i = 0; i < problem_.N; ++i) W[i] += part[i];
    }
    set(std::move(W));
  }

  /// The subspace step, more rarely after every time that it finds nothing; with equality pairs
  /// there is none.
  void face() {
    if (problem_.E > 0 || rest_-- > 0) return;
    const bool better = face_step(problem_, step_, lam_, row_major_);
    if (better) set(row_major_);
    next_rest_ = better ? 1 : 2 * next_rest_;
    rest_ = better ? 0 : next_rest_;
  }

  /// Its certificate measures all pairs; resting ones that are violated wake up.
  Candidate candidate() {
    Candidate found{problem_.E > 0 ? problem_.adjoint(lam_) : row_major_, lam_, {}};
    std::vector<double> margins;
    found.c = problem_.measure_dual(found.W, found.lam, &margins);
    wake(margins);
    return found;
  }

 private:
  void set(std::vector<double> W) {
    row_major_ = std::move(W);
    for (int64_t i = 0; i < problem_.rx; ++i)
      for (int64_t k = 0; k < problem_.rz; ++k)
        W_[k * problem_.rx + i] = row_major_[i * problem_.rz + k];
  }

  void wake(const std::vector<double>& margins) {
    const auto& ptr = problem_.pairs.inequality.ptr;
    for (int64_t q = 0; q < problem_.sets.Q; ++q)
      for (int64_t i = ptr[q] + counts_[q]; i < ptr[q + 1]; ++i)
        if (margins[active_[i]] < 1) std::swap(active_[i], active_[ptr[q] + counts_[q]++]);
  }

  const Problem& problem_;
  std::mt19937_64 random_;
  std::vector<double> lam_, nu_, W_, row_major_, scratch_;
  std::vector<int64_t> active_, counts_, order_;
  std::unique_ptr<double[]> a_, e_;
  std::vector<double> step_, ee_, zz_;
  DcdState state_{};
  int64_t rest_ = 0, next_rest_ = 1;  // checks
};

}  // namespace

int64_t descend(const Problem& problem, const SvmSettings& settings, double tol,
                const std::vector<double>& start, const Patience& patience, Monitor& monitor,
                Candidate& best) {
  Descent descent(problem, settings, start);
  for (int64_t epoch = 1; epoch <= settings.max_epochs; ++epoch) {
    descent.epoch();
    if (epoch % settings.check_every != 0 && epoch != settings.max_epochs) continue;
    descent.rebuild();
    keep_better(best, descent.candidate());
    if (patience.is_over(epoch, best.c.gap)) return epoch;
    if (best.c.gap <= tol || best.c.kappa >= settings.kappa_max ||
        !monitor.report("descent", epoch, best.c))
      return epoch;
    descent.face();
  }
  return settings.max_epochs;
}

}  // namespace kktorch::csrc
