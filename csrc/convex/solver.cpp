#include "csrc/convex/solver.h"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>

#include "csrc/convex/newton.h"
#include "csrc/convex/tiles.h"
#include "csrc/convex/working_groups.h"

namespace kktorch::csrc {
namespace {

using Clock = std::chrono::steady_clock;

bool is_sequence(PenaltyKind kind) {
  return kind == PenaltyKind::kSequence || kind == PenaltyKind::kSubstochastic;
}

template <typename T>
int64_t rows_per_sample(const ConvexData<T>& data) {
  return is_sequence(data.penalty) ? data.n : 1;
}

/// The samples for sums in float64.
template <typename T>
Samples<double> wide_samples_of(const ConvexData<T>& data) {
  Samples<double> samples = {.N = data.N,
                             .D = data.n * data.d,
                             .P = data.P,
                             .ids = data.ids,
                             .n = data.n,
                             .V = data.d,
                             .gate = data.gate};
  if constexpr (std::is_same_v<T, double>)
    samples.wide = data.X;
  else
    samples.narrow = data.X;
  return samples;
}

template <typename T>
std::unique_ptr<Penalty<T>> penalty_of(PenaltyKind kind, int64_t P, int64_t c, int64_t n, int64_t d,
                                       const Parallel& parallel) {
  switch (kind) {
    case PenaltyKind::kGroup:
      return std::make_unique<GroupPenalty<T>>(P * c * n, d, parallel);
    case PenaltyKind::kNuclear:
      return nuclear_penalty<T>(P, c, n, d, parallel);
    default:
      return sequence_penalty<T>(c, n, d, kind == PenaltyKind::kSubstochastic, parallel);
  }
}

/// The tokens that still have a live group, with their features alone: what is iterated on.
template <typename T>
class LiveTokens {
 public:
  LiveTokens(const ConvexData<T>& data, const Parallel& parallel)
      : data_(data), parallel_(parallel), tokens_(data.n), alive_(data.P * data.c * data.n, 1) {
    for (int64_t k = 0; k < data.n; ++k) tokens_[k] = k;
    build();
  }

  const Design<T>& design() const { return *design_; }
  Penalty<T>& penalty() const { return *penalty_; }
  bool is_whole() const { return static_cast<int64_t>(tokens_.size()) == data_.n; }
  int64_t reads() const { return reads_ + design_->reads(); }
  int64_t dead() const { return std::count(alive_.begin(), alive_.end(), 0); }

  /// Z of all tokens from that of the live ones, and back.
  std::vector<T> expand(const std::vector<T>& Z) const { return moved(Z, true); }
  std::vector<T> restrict(const std::vector<T>& Z) const { return moved(Z, false); }

  /// Groups that the gap rules out: |s| |G_g| + sqrt(2 mu gap) op_k < beta. True if one of them was
  /// not zero in Z, which is zeroed.
  bool screen(std::vector<T>& Z, const std::vector<T>& previous, const std::vector<T>& G, double s,
              double radius, double beta) {
    if (norms_.empty()) norms_ = token_norms(data_, parallel_);
    auto& groups = static_cast<GroupPenalty<T>&>(*penalty_);
    const int64_t live = tokens_.size(), count = data_.P * data_.c * live;
    bool changed = false;
    for (int64_t g = 0; g < count; ++g) {
      const double op = norms_[tokens_[g % live]];
      if (!groups.alive()[g] || std::abs(s) * groups.norm(G.data(), g) + radius * op >= beta)
        continue;
      groups.alive()[g] = 0;
      alive_[g / live * data_.n + tokens_[g % live]] = 0;
      for (int64_t j = g * data_.d; j < (g + 1) * data_.d; ++j) {
        changed |= Z[j] != 0 || previous[j] != 0;
        Z[j] = 0;
      }
    }
    return changed;
  }

  /// Are a quarter of the columns dead?
  bool can_shrink() const {
    if (!data_.X) return false;
    const auto live = live_tokens();
    return !live.empty() && 4 * live.size() <= 3 * tokens_.size();
  }

  /// Drops dead tokens; Z follows.
  void shrink(std::vector<T>& Z) {
    const auto whole = expand(Z);
    tokens_ = live_tokens();
    reads_ += design_->reads();
    build();
    Z = restrict(whole);
  }

 private:
  std::vector<int64_t> live_tokens() const {
    std::vector<int64_t> live;
    for (const int64_t k : tokens_)
      for (int64_t pl = 0; pl < data_.P * data_.c; ++pl)
        if (alive_[pl * data_.n + k]) {
          live.push_back(k);
          break;
        }
    return live;
  }

  void build() {
    auto samples = samples_of(data_);
    const int64_t live = tokens_.size(), d = data_.d;
    if (!is_whole()) {
      std::vector<T> features(data_.N * live * d);
      parallel_(data_.N, [&](int64_t i) {
        for (int64_t k = 0; k < live; ++k)
          std::copy_n(data_.X + (i * data_.n + tokens_[k]) * d, d,
                      features.data() + (i * live + k) * d);
      });
      features_ = std::move(features);
      samples.wide = features_.data();
      samples.D = live * d;
    }
    design_.emplace(samples, parallel_);
    penalty_ = penalty_of<T>(data_.penalty, data_.P, data_.c, live, d, parallel_);
    if (data_.penalty != PenaltyKind::kGroup) return;
    auto& alive = static_cast<GroupPenalty<T>&>(*penalty_).alive();
    for (size_t g = 0; g < alive.size(); ++g)
      alive[g] = alive_[g / live * data_.n + tokens_[g % live]];
  }

  std::vector<T> moved(const std::vector<T>& Z, bool to_whole) const {
    if (is_whole()) return Z;
    const int64_t live = tokens_.size(), d = data_.d, outputs = data_.P * data_.c;
    std::vector<T> result(outputs * d * (to_whole ? data_.n : live));
    for (int64_t pl = 0; pl < outputs; ++pl)
      for (int64_t k = 0; k < live; ++k) {
        const int64_t inner = (pl * live + k) * d, outer = (pl * data_.n + tokens_[k]) * d;
        std::copy_n(Z.data() + (to_whole ? inner : outer), d,
                    result.data() + (to_whole ? outer : inner));
      }
    return result;
  }

  const ConvexData<T>& data_;
  const Parallel& parallel_;
  std::vector<int64_t> tokens_;
  std::vector<uint8_t> alive_;  ///< of all groups
  std::vector<T> features_;
  std::vector<double> norms_;
  std::optional<Design<T>> design_;
  std::unique_ptr<Penalty<T>> penalty_;
  int64_t reads_ = 0;
};

/// One call of solve_convex.
template <typename T>
class Solver {
 public:
  Solver(const ConvexData<T>& data, double beta, const SolveOptions& options,
         const Parallel& parallel)
      : data_(data), beta_(beta), options_(options), parallel_(parallel), live_(data, parallel) {}

  Solution<T> solve(std::vector<T> Z) {
    result_.beta_max = convex_beta_max(data_, parallel_);
    const int64_t size = live_.penalty().state_size();
    if (beta_ >= result_.beta_max) return null_solution(size);
    if (Z.empty()) Z.assign(size, T(0));
    lip_ = options_.lip;
    double tolerance = options_.tol_rel;
    for (int attempt = 0;; ++attempt) {
      auto status = iterate(Z, tolerance);
      const bool done = certify(Z);
      if (status == Status::kConverged && !done) {
        status = Status::kPrecisionLimit;
        tolerance *= 0.3;
        if (attempt < 10 && result_.iterations < options_.max_iter) continue;
      }
      result_.status = done ? Status::kConverged : status;
      break;
    }
    result_.Z = live_.expand(Z);
    result_.reads = live_.reads();
    result_.screened = live_.dead();
    result_.lip = lip_;
    return std::move(result_);
  }

 private:
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  double allowed(double objective, double tolerance) const {
    return std::max(options_.tol_abs, tolerance * std::abs(objective));
  }

  Solution<T> null_solution(int64_t size) {
    result_.Z.assign(size, T(0));
    certify(result_.Z);
    result_.status = Status::kNullSolution;
    result_.reads = live_.reads();
    return std::move(result_);
  }

  /// Iterates on the live tokens, which get fewer on the way, until the gap on them is small
  /// enough.
  Status iterate(std::vector<T>& Z, double tolerance) {
    while (true) {
      const ConvexProgram<T> program = {
          &live_.design(),        &live_.penalty(), data_.loss, data_.targets,
          rows_per_sample(data_), data_.c,          beta_};
      Fista<T> fista(program, lip_);
      fista.start(std::move(Z));
      bool shrinks = false;
      const auto status = iterate(program, fista, tolerance, shrinks);
      lip_ = fista.lip();
      result_.backtracks += fista.backtracks();
      result_.restarts += fista.restarts();
      Z = std::move(fista.Z());
      if (!shrinks) {
        estimate_ = {fista.objective(), fista.best_dual()};
        hint_.assign(fista.best_multipliers().begin(), fista.best_multipliers().end());
        return status;
      }
      live_.shrink(Z);
    }
  }

  Status iterate(const ConvexProgram<T>& program, Fista<T>& fista, double tolerance,
                 bool& shrinks) {
    double slow_gap = std::numeric_limits<double>::infinity();
    int64_t slow_since = 0;
    for (int64_t round = 0;; ++round) {
      const double F = fista.objective(), gap = F - fista.best_dual();
      if (gap <= allowed(F, tolerance)) return Status::kConverged;
      if (result_.iterations >= options_.max_iter) return Status::kMaxIter;
      if (is_late()) return Status::kTimeLimit;
      if (gap < 0.9 * slow_gap) {
        slow_gap = gap;
        slow_since = round;
      } else if (round - slow_since > kSlow) {
        return Status::kPrecisionLimit;
      }
      bool goes_on = true;
      const bool is_focused = focus(program, fista, 0.3 * gap, goes_on);
      if (!goes_on) return Status::kInterrupted;
      if (!is_focused) {
        if (!(fista.lip() > 0)) fista.set_lip(estimated_lip());
        fista.step();
      }
      spent_ += 1;
      // A round that came to the last iteration has shown its point already.
      if (result_.iterations < options_.max_iter && !record(fista.objective(), fista.best_dual()))
        return Status::kInterrupted;
      pace_.push_back({spent_, fista.objective() - fista.best_dual()});
      if (spent_ >= kWait && !refine(program, fista, tolerance)) return Status::kInterrupted;
      if (is_screened() && !is_focused && (round + 1) % options_.screen_every == 0) {
        screen(fista);
        if ((shrinks = live_.can_shrink())) return Status::kConverged;
      }
    }
  }

  double estimated_lip() const {
    return 1.01 * smoothness(data_.loss) * live_.design().squared_norm() * live_.penalty().copies();
  }

  bool is_late() const { return options_.time_limit > 0 && seconds() > options_.time_limit; }

  /// One more iteration; false if the caller wants no other.
  bool record(double objective, double dual) {
    const Iterate now = {++result_.iterations, seconds(), objective, objective - dual};
    result_.history.push_back(now);
    return !options_.progress || options_.progress(now);
  }

  /// A round on a working set, where that pays, and a read after it.
  bool focus(const ConvexProgram<T>& program, Fista<T>& fista, double gap, bool& goes_on) {
    if (!is_screened() || result_.iterations < next_focus_) return false;
    const auto& samples = live_.design().samples();
    const auto groups = working_groups(program, samples, fista.Z(), fista.G());
    if (groups.empty()) {
      next_focus_ = result_.iterations + kUnfocused;
      return false;
    }
    if (!(focus_lip_ > 0)) focus_lip_ = smallest_lip();
    Round round = {.lip = focus_lip_, .gap = gap};
    auto Z = fista.Z();
    iterate_on_groups<T>(program, samples, groups, Z, round, [&](double objective, double cost) {
      spent_ += cost;
      goes_on = record(objective, fista.best_dual());
      return goes_on && !is_late() && result_.iterations < options_.max_iter;
    });
    focus_lip_ = round.lip;
    result_.backtracks += round.backtracks;
    result_.restarts += round.restarts;
    fista.start(std::move(Z));
    return true;
  }

  /// Of a column of average size, by a few samples: a start that grows to what the steps show.
  double smallest_lip() const {
    const auto& samples = live_.design().samples();
    const int64_t rows = std::min<int64_t>(samples.N, 64);
    double sum = samples.ids ? static_cast<double>(rows * samples.n) : 0;
    for (int64_t j = 0; samples.wide && j < rows * samples.D; ++j)
      sum += double(samples.wide[j]) * samples.wide[j];
    const double columns = static_cast<double>(rows * samples.D) / static_cast<double>(samples.N);
    return smoothness(data_.loss) * std::max(sum / columns, 1e-300);
  }

  /// Newton steps on the active groups, if one costs no more than kMostReads reads.
  bool refine(const ConvexProgram<T>& program, Fista<T>& fista, double tolerance) {
    bool goes_on = true;
    if constexpr (std::is_same_v<T, double>) {
      if (!options_.newton || data_.penalty != PenaltyKind::kGroup || !data_.X) return true;
      const auto& samples = live_.design().samples();
      const double cost = newton_cost(program, samples, fista.Z());
      if (cost > kMostReads) return true;
      // Three times as many reads as a step costs come first, and where few are left, they do it.
      if (spent_ < kWait + 3 * cost) return true;
      const double target = allowed(fista.objective(), tolerance);
      if (reads_left(target) < std::max(kNewtonReads * cost, double{kWait})) return true;
      auto Z = fista.Z();
      const double F = fista.objective(), accuracy = 0.1 * allowed(F, tolerance) / std::abs(F);
      int64_t steps = 0;
      newton_steps(program, samples, Z, accuracy, [&](double objective) {
        ++result_.newton_steps;
        goes_on = record(objective, fista.best_dual());
        return goes_on && ++steps < kNewtonSteps && !is_late() &&
               result_.iterations < options_.max_iter;
      });
      if (steps > 0 || !goes_on) fista.start(std::move(Z));
      // What the steps have come to, with its own dual point.
      if (steps > 0 && goes_on && result_.iterations < options_.max_iter)
        goes_on = record(fista.objective(), fista.best_dual());
      spent_ = 0;
      pace_.clear();
    }
    return goes_on;
  }

  /// Reads until the gap is `target`, at the pace since the last Newton step.
  double reads_left(double target) const {
    if (pace_.size() < 2) return std::numeric_limits<double>::infinity();
    const auto &from = pace_[std::max<int64_t>(0, std::ssize(pace_) - 1 - kPace)],
               &last = pace_.back();
    if (!(last.gap > 0 && last.gap < from.gap)) return std::numeric_limits<double>::infinity();
    return std::log(last.gap / target) * (last.spent - from.spent) / std::log(from.gap / last.gap);
  }

  bool is_screened() const {
    return options_.screen_every > 0 && data_.penalty == PenaltyKind::kGroup;
  }

  void screen(Fista<T>& fista) {
    // The gap of this residual, not of the best one: the sphere is about this dual point. Rounding
    // hides a smaller gap, and without a sphere active groups, whose norm is beta, would be
    // dropped.
    const double least = std::numeric_limits<T>::epsilon() * std::abs(fista.objective());
    const double gap = std::max(least, fista.objective() - fista.dual().value);
    const double radius = std::sqrt(2 * smoothness(data_.loss) * gap);
    if (live_.screen(fista.Z(), fista.previous(), fista.G(), fista.dual().scale, radius, beta_))
      fista.start(std::move(fista.Z()));
  }

  /// The certificate over all groups; true if it is within the tolerance.
  bool certify(const std::vector<T>& Z) {
    if (std::is_same_v<T, double> && live_.is_whole() && !hint_.empty()) {
      result_.objective = estimate_.objective;
      result_.dual = estimate_.dual;
      result_.gap = result_.objective - result_.dual;
      result_.multipliers = hint_;
    } else {
      const auto whole = live_.expand(Z);
      const std::vector<double> wide(whole.begin(), whole.end());
      const auto certificate =
          certify_convex(data_, beta_, wide.data(), hint_.empty() ? nullptr : hint_.data(),
                         parallel_, &result_.multipliers);
      result_.objective = certificate.objective;
      result_.dual = certificate.dual;
      result_.gap = certificate.gap;
    }
    // Newton steps end at the optimum to rounding, where F - D has any sign.
    constexpr double kRounding = 1e-12;
    const double least = -kRounding * std::abs(result_.objective);
    if (least < result_.gap && 0 > result_.gap) result_.gap = 0;
    return result_.gap <= allowed(result_.objective, options_.tol_rel);
  }

  struct Estimate {
    double objective, dual;
  };

  static constexpr int64_t kWait = 5, kNewtonSteps = 20;  ///< fewest iterations between, most steps
  static constexpr int64_t kPace = 20;                    ///< rounds that tell the pace
  static constexpr int64_t kUnfocused = 50;   ///< iterations until working sets are tried again
  static constexpr double kMostReads = 300;   ///< that a Newton step may cost
  static constexpr double kNewtonReads = 20;  ///< reads that all steps take, for a step of cost 1

  /// Rounds without progress of a tenth after which rounding is to blame.
  static constexpr int64_t kSlow = std::is_same_v<T, double> ? 5000 : 300;

  const ConvexData<T>& data_;
  const double beta_;
  const SolveOptions& options_;
  const Parallel& parallel_;
  LiveTokens<T> live_;
  double lip_ = 0;
  /// Reads since the last Newton step, and the gap after every round since.
  struct Pace {
    double spent, gap;
  };
  double spent_ = 0;
  std::vector<Pace> pace_;
  double focus_lip_ = 0;
  int64_t next_focus_ = 0;  ///< iteration
  Estimate estimate_ = {};
  std::vector<double> hint_;
  Clock::time_point start_ = Clock::now();
  Solution<T> result_;
};

/// Targets in float64; `storage` holds them where they are not.
template <typename T>
Targets<double> wide_targets(const ConvexData<T>& data, std::vector<double>& storage) {
  if (!data.targets.values) return {nullptr, data.targets.ids};
  if constexpr (std::is_same_v<T, double>) return data.targets;
  const int64_t size = data.N * rows_per_sample(data) * data.c;
  storage.assign(data.targets.values, data.targets.values + size);
  return {storage.data(), nullptr};
}

}  // namespace

template <typename T>
Solution<T> solve_convex(const ConvexData<T>& data, double beta, const SolveOptions& options,
                         std::vector<T> Z0, const Parallel& parallel) {
  return Solver<T>(data, beta, options, parallel).solve(std::move(Z0));
}

template <typename T>
Certificate certify_convex(const ConvexData<T>& data, double beta, const double* Z,
                           const double* hint, const Parallel& parallel,
                           std::vector<double>* multipliers) {
  const Design<double> design(wide_samples_of(data), parallel);
  const auto penalty = penalty_of<double>(data.penalty, data.P, data.c, data.n, data.d, parallel);
  std::vector<double> storage;
  const auto targets = wide_targets(data, storage);
  const int64_t q = rows_per_sample(data), outputs = q * data.c, rows = data.N * q;
  std::vector<double> map(penalty->map_size()), G(penalty->map_size()), R(data.N * outputs);
  std::vector<double> losses(design.blocks());
  design.pass(
      penalty->map(Z, map.data()), outputs,
      [&](int64_t block, int64_t first, int64_t count, const double* A) -> const double* {
        losses[block] = loss_of_rows(data.loss, A, targets, first * q, count * q, data.c);
        double* own = R.data() + first * outputs;
        gradient_of_rows(data.loss, A, targets, first * q, count * q, data.c, own);
        return own;
      },
      G.data());
  Certificate result = {};
  for (const double loss : losses) result.objective += loss;
  result.penalty = penalty->value(Z);
  result.objective += beta * result.penalty;
  auto dual = dual_point(data.loss, R.data(), targets, rows, data.c, penalty->dual_norm(G.data()),
                         beta, parallel);
  const double* best = R.data();
  if (hint) {
    design.pass(
        penalty->map(Z, map.data()), outputs,
        [&](int64_t, int64_t first, int64_t, const double*) { return hint + first * outputs; },
        G.data());
    const auto hinted = dual_point(data.loss, hint, targets, rows, data.c,
                                   penalty->dual_norm(G.data()), beta, parallel);
    if (hinted.value > dual.value) {
      dual = hinted;
      best = hint;
    }
  }
  result.dual = dual.value;
  result.gap = result.objective - result.dual;
  if (multipliers) {
    multipliers->resize(data.N * outputs);
    for (size_t j = 0; j < multipliers->size(); ++j) (*multipliers)[j] = dual.scale * best[j];
  }
  return result;
}

template <typename T>
double convex_beta_max(const ConvexData<T>& data, const Parallel& parallel) {
  const Design<double> design(wide_samples_of(data), parallel);
  const auto penalty = penalty_of<double>(data.penalty, data.P, data.c, data.n, data.d, parallel);
  std::vector<double> storage;
  const auto targets = wide_targets(data, storage);
  const int64_t q = rows_per_sample(data);
  std::vector<double> zero(penalty->map_size()), G(penalty->map_size());
  design.pass(
      zero.data(), q * data.c,
      [&](int64_t, int64_t first, int64_t count, double* A) {
        std::vector<double> none(A, A + count * q * data.c);
        gradient_of_rows(data.loss, none.data(), targets, first * q, count * q, data.c, A);
        return A;
      },
      G.data());
  return penalty->dual_norm(G.data());
}

template <typename T>
std::vector<double> token_norms(const ConvexData<T>& data, const Parallel& parallel) {
  const int64_t n = data.n, d = data.d;
  std::vector<double> norms(n);
  parallel(n, [&](int64_t k) {
    if (data.ids) {
      std::vector<int64_t> counts(d);
      for (int64_t i = 0; i < data.N; ++i) ++counts[data.ids[i * n + k]];
      norms[k] = std::sqrt(static_cast<double>(*std::max_element(counts.begin(), counts.end())));
      return;
    }
    std::vector<T> gram(d * d);
    std::vector<const T*> rows(256);
    for (int64_t first = 0; first < data.N; first += 256) {
      const int64_t count = std::min<int64_t>(256, data.N - first);
      for (int64_t i = 0; i < count; ++i) rows[i] = data.X + ((first + i) * n + k) * d;
      tile_kernels<T>().backward(rows.data(), count, rows.data(), d, d, gram.data(), d);
    }
    using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const Eigen::Map<const Matrix> product(gram.data(), d, d);
    // Beyond that width the trace, a larger bound, is cheaper than eigenvalues.
    constexpr int64_t kWidest = 256;
    const Eigen::MatrixXd wide = product.template cast<double>();
    const double square =
        d > kWidest ? wide.trace()
                    : Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(wide, Eigen::EigenvaluesOnly)
                          .eigenvalues()
                          .maxCoeff();
    norms[k] = std::sqrt(std::max(0., square)) * (1 + (sizeof(T) == 8 ? 1e-6 : 1e-3));
  });
  return norms;
}

#define INSTANTIATE(T)                                                                            \
  template Solution<T> solve_convex(const ConvexData<T>&, double, const SolveOptions&,            \
                                    std::vector<T>, const Parallel&);                             \
  template Certificate certify_convex(const ConvexData<T>&, double, const double*, const double*, \
                                      const Parallel&, std::vector<double>*);                     \
  template double convex_beta_max(const ConvexData<T>&, const Parallel&);                         \
  template std::vector<double> token_norms(const ConvexData<T>&, const Parallel&);
INSTANTIATE(double)
INSTANTIATE(float)
#undef INSTANTIATE

}  // namespace kktorch::csrc
