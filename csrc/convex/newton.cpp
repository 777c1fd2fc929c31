#include "csrc/convex/newton.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "csrc/svm/dense.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kMostVariables = 3000;  // of a system
constexpr double kRounding = 1e-13;       // of an objective, relative
constexpr int64_t kColumns = 256;         // of a Gram matrix at a time

/// Token k under gate p: d features.
struct Block {
  int64_t p, k;
};

struct Group {
  int64_t index, l;
  Block block;
};

/// The groups that are not zero of outputs [first, last), by outputs.
std::vector<Group> active_groups(const ConvexProgram<double>& program,
                                 const Samples<double>& samples, const std::vector<double>& Z,
                                 int64_t first, int64_t last) {
  const int64_t d = groups_of(program).d(), n = samples.D / d, c = program.c;
  std::vector<Group> groups;
  for (int64_t l = first; l < last; ++l)
    for (int64_t p = 0; p < samples.P; ++p)
      for (int64_t k = 0; k < n; ++k) {
        const int64_t g = (p * c + l) * n + k;
        if (!groups_of(program).is_zero(Z.data(), g)) groups.push_back({g, l, {p, k}});
      }
  return groups;
}

/// F [N, blocks d]: the features of blocks side by side, zero where the gate is closed.
void gather(const ConvexProgram<double>& program, const Samples<double>& samples,
            const std::vector<Block>& blocks, std::vector<double>& F) {
  const int64_t d = groups_of(program).d(), m = static_cast<int64_t>(blocks.size()) * d;
  F.resize(samples.N * m);
  program.design->parallel()(samples.N, [&](int64_t i) {
    double* to = F.data() + i * m;
    for (const auto& [p, k] : blocks) {
      if (samples.gate && !samples.gate[i * samples.P + p])
        std::fill_n(to, d, 0.);
      else
        std::copy_n(samples.wide + i * samples.D + k * d, d, to);
      to += d;
    }
  });
}

/// Variables [begin, end).
struct Range {
  int64_t begin, end;
};

/// H += sign B' C on the lower triangle, columns [range) of both [N, m]; H starts at their corner.
void add_gram(double sign, const std::vector<double>& B, const std::vector<double>& C, int64_t N,
              int64_t m, Range range, double* H, int64_t width) {
  for (int64_t first = range.begin; first < range.end; first += kColumns) {
    const int64_t last = std::min(range.end, first + kColumns);
    gemm(range.end - first, last - first, N, sign, row_major(B.data() + first, m).transposed(),
         row_major(C.data() + first, m), H + (first - range.begin) * (width + 1), width);
  }
}

bool is_joint(Loss loss) { return loss == Loss::kCrossEntropy; }
bool is_squared(Loss loss) { return loss == Loss::kHalfSquared || loss == Loss::kSquared; }

/// mu F' F of all blocks that some output uses. Squared losses have the same curvature everywhere:
/// every system of every step is a part of it.
class SharedGram {
 public:
  SharedGram(const ConvexProgram<double>& program, const Samples<double>& samples,
             const std::vector<Group>& groups)
      : d_(groups_of(program).d()), tokens_(samples.D / d_), place_(samples.P * tokens_, -1) {
    std::vector<Block> blocks;
    for (const auto& group : groups) {
      auto& place = place_[group.block.p * tokens_ + group.block.k];
      if (place >= 0) continue;
      place = static_cast<int64_t>(blocks.size());
      blocks.push_back(group.block);
    }
    std::vector<double> F;
    gather(program, samples, blocks, F);
    width_ = static_cast<int64_t>(blocks.size()) * d_;
    values_.assign(width_ * width_, 0.);
    add_gram(smoothness(program.loss), F, F, samples.N, width_, {0, width_}, values_.data(),
             width_);
    for (int64_t i = 0; i < width_; ++i)
      for (int64_t j = 0; j < i; ++j) values_[j * width_ + i] = values_[i * width_ + j];
  }

  /// The part of `blocks`, into the lower triangle of H.
  void copy(const std::vector<Block>& blocks, double* H) const {
    const int64_t m = static_cast<int64_t>(blocks.size()) * d_;
    for (size_t a = 0; a < blocks.size(); ++a)
      for (size_t b = 0; b <= a; ++b) {
        const double* from = values_.data() + (place(blocks[a]) * width_ + place(blocks[b])) * d_;
        double* to = H + (static_cast<int64_t>(a) * m + static_cast<int64_t>(b)) * d_;
        for (int64_t q = 0; q < d_; ++q) std::copy_n(from + q * width_, d_, to + q * m);
      }
  }

 private:
  int64_t place(const Block& block) const { return place_[block.p * tokens_ + block.k]; }

  const int64_t d_, tokens_;
  int64_t width_ = 0;
  std::vector<int64_t> place_;  ///< [P, tokens]
  std::vector<double> values_;
};

/// What systems use in turn.
struct Workspace {
  std::vector<double> F, weighted, H, L;
};

/// The program of outputs [first, last): all of them, or a single one of a loss that separates.
class System {
 public:
  System(const ConvexProgram<double>& program, const Samples<double>& samples,
         std::vector<double>& Z, int64_t first, int64_t last, const SharedGram* gram,
         Workspace& space)
      : program_(program),
        samples_(samples),
        N_(samples.N),
        c_(last - first),
        d_(groups_of(program).d()),
        first_(first),
        gram_(gram),
        Z_(Z),
        space_(space),
        targets_(program.targets) {
    if (targets_.values && c_ < program.c) {
      own_targets_.resize(N_);
      for (int64_t i = 0; i < N_; ++i)
        own_targets_[i] = program.targets.values[i * program.c + first];
      targets_.values = own_targets_.data();
    }
  }

  /// After the first advance().
  double objective() const { return objective_; }

  /// One step; false if the gradient is small enough, or no step lowers the objective.
  bool advance(double accuracy) {
    if (is_done_) return false;
    gather_active();
    if (A_.empty()) objective_ = objective_at(z_, A_);
    const double now = gradient();
    // Where rounding hides what a step gains, its gradient has to fall instead.
    is_done_ = now <= accuracy * program_.beta || (is_last_ && now > before_ / 2) || !step();
    before_ = now;
    return !is_done_;
  }

 private:
  int64_t size() const { return static_cast<int64_t>(groups_.size()) * d_; }
  int64_t output_of(int64_t variable) const { return groups_[variable / d_].l - first_; }

  /// The active part of Z, and its features into the workspace.
  void gather_active() {
    groups_ = active_groups(program_, samples_, Z_, first_, first_ + c_);
    const int64_t m = size();
    z_.resize(m);
    blocks_.clear();
    for (size_t j = 0; j < groups_.size(); ++j) {
      blocks_.push_back(groups_[j].block);
      std::copy_n(Z_.data() + groups_[j].index * d_, d_, z_.data() + j * d_);
    }
    gather(program_, samples_, blocks_, space_.F);
    ranges_.clear();
    for (int64_t l = 0, begin = 0; l < c_; ++l) {
      int64_t end = begin;
      while (end < m && output_of(end) == l) ++end;
      ranges_.push_back({begin, end});
      begin = end;
    }
  }

  double objective_at(const std::vector<double>& z, std::vector<double>& A) const {
    A.assign(N_ * c_, 0.);
    const int64_t m = size();
    program_.design->parallel()(N_, [&](int64_t i) {
      for (int64_t l = 0; l < c_; ++l) {
        double sum = 0;
        for (int64_t j = ranges_[l].begin; j < ranges_[l].end; ++j)
          sum += space_.F[i * m + j] * z[j];
        A[i * c_ + l] = sum;
      }
    });
    double penalty = 0;
    for (int64_t j = 0; j < m; j += d_) penalty += norm(z.data() + j, d_);
    return loss_of_rows(program_.loss, A.data(), targets_, 0, N_, c_) + program_.beta * penalty;
  }

  /// Fills g_; returns the largest norm of a group of it.
  double gradient() {
    const int64_t m = size();
    R_.resize(N_ * c_);
    gradient_of_rows(program_.loss, A_.data(), targets_, 0, N_, c_, R_.data());
    g_.assign(m, 0.);
    for (int64_t i = 0; i < N_; ++i)
      for (int64_t l = 0; l < c_; ++l) {
        const double r = R_[i * c_ + l];
        for (int64_t j = ranges_[l].begin; j < ranges_[l].end; ++j)
          g_[j] += r * space_.F[i * m + j];
      }
    double top = 0;
    for (int64_t j = 0; j < m; j += d_) {
      const double length = norm(z_.data() + j, d_);
      for (int64_t q = j; q < j + d_; ++q) g_[q] += program_.beta * z_[q] / length;
      top = std::max(top, norm(g_.data() + j, d_));
    }
    return top;
  }

  /// d2L/dA_il dA_il where W is diagonal; the probabilities p_il of cross-entropy, whose part -p p'
  /// comes on top.
  std::vector<double> curvature() const {
    std::vector<double> w(N_ * c_);
    if (program_.loss == Loss::kLogistic)
      for (size_t j = 0; j < w.size(); ++j) w[j] = std::abs(R_[j]) * (1 - std::abs(R_[j]));
    if (program_.loss == Loss::kCrossEntropy)
      for (int64_t i = 0; i < N_; ++i)
        for (int64_t l = 0; l < c_; ++l) {
          const double q = targets_.values ? targets_.values[i * c_ + l]
                                           : static_cast<double>(targets_.ids[i] == l);
          w[i * c_ + l] = std::clamp(R_[i * c_ + l] + q, 0., 1.);
        }
    return w;
  }

  /// Lower triangle of the Hessian of the loss, into the workspace.
  void loss_hessian() {
    const int64_t m = size();
    auto& [F, weighted, H, L] = space_;
    H.assign(m * m, 0.);
    if (gram_) return gram_->copy(blocks_, H.data());
    const auto w = curvature();
    weighted.resize(N_ * m);
    for (int64_t i = 0; i < N_; ++i)
      for (int64_t j = 0; j < m; ++j) weighted[i * m + j] = w[i * c_ + output_of(j)] * F[i * m + j];
    for (const auto& own : ranges_)
      add_gram(1, F, weighted, N_, m, own, H.data() + own.begin * (m + 1), m);
    if (is_joint(program_.loss)) add_gram(-1, weighted, weighted, N_, m, {0, m}, H.data(), m);
  }

  /// Curvature of the norms.
  void add_penalty(double* H) const {
    const int64_t m = size();
    for (int64_t j = 0; j < m; j += d_) {
      const double length = norm(z_.data() + j, d_), scale = program_.beta / length;
      for (int64_t a = 0; a < d_; ++a)
        for (int64_t b = 0; b <= a; ++b)
          H[(j + a) * m + j + b] += scale * ((a == b) - z_[j + a] / length * (z_[j + b] / length));
    }
  }

  /// The Newton direction, into d.
  bool solve(std::vector<double>& d) {
    const int64_t m = size();
    auto& [F, weighted, H, L] = space_;
    loss_hessian();
    double top = 0;
    for (int64_t j = 0; j < m; ++j) top = std::max(top, H[j * m + j]);
    add_penalty(H.data());
    for (double ridge = 1e-12 * top; ridge <= top; ridge *= 1e3) {
      L = H;
      for (int64_t j = 0; j < m; ++j) L[j * m + j] += ridge;
      if (!cholesky(L.data(), m, 1e-3 * ridge)) continue;
      for (int64_t j = 0; j < m; ++j) d[j] = -g_[j];
      cholesky_solve(L.data(), m, d.data());
      return true;
    }
    return false;
  }

  bool step() {
    const int64_t m = size();
    std::vector<double> d(m), trial(m), A;
    if (!solve(d)) return false;
    double slope = 0;
    for (int64_t j = 0; j < m; ++j) slope += g_[j] * d[j];
    for (double t = 1; t > 1e-6; t /= 2) {
      for (int64_t j = 0; j < m; j += d_) {
        double along = 0;
        for (int64_t q = j; q < j + d_; ++q) {
          trial[q] = z_[q] + t * d[q];
          along += trial[q] * z_[q];
        }
        if (!(along > 0)) std::fill_n(trial.data() + j, d_, 0.);
      }
      const double objective = objective_at(trial, A);
      const double rounding = kRounding * std::abs(objective_);
      if (!(objective <= objective_ + 1e-4 * t * slope + rounding)) continue;
      is_last_ = -slope < rounding;
      for (size_t j = 0; j < groups_.size(); ++j)
        std::copy_n(trial.data() + j * d_, d_, Z_.data() + groups_[j].index * d_);
      std::swap(A_, A);
      objective_ = objective;
      return true;
    }
    return false;
  }

  const ConvexProgram<double>& program_;
  const Samples<double>& samples_;
  const int64_t N_, c_, d_, first_;
  const SharedGram* gram_;
  std::vector<double>& Z_;
  Workspace& space_;
  Targets<double> targets_;
  std::vector<double> own_targets_;
  std::vector<Group> groups_;
  std::vector<Block> blocks_;  ///< of the groups
  std::vector<Range> ranges_;  ///< of every output
  std::vector<double> z_, A_, R_, g_;
  double objective_ = 0, before_ = std::numeric_limits<double>::infinity();
  bool is_last_ = false;  ///< the last step gained less than rounding shows
  bool is_done_ = false;
};

}  // namespace

double newton_cost(const ConvexProgram<double>& program, const Samples<double>& samples,
                   const std::vector<double>& Z) {
  const int64_t d = groups_of(program).d(), tokens = samples.D / d;
  std::vector<double> sizes(program.c);
  std::vector<uint8_t> is_used(samples.P * tokens);
  double all = 0, used = 0;
  for (const auto& group : active_groups(program, samples, Z, 0, program.c)) {
    sizes[group.l] += static_cast<double>(d);
    all += static_cast<double>(d);
    auto& use = is_used[group.block.p * tokens + group.block.k];
    used += use ? 0 : static_cast<double>(d);
    use = 1;
  }
  const auto N = static_cast<double>(samples.N);
  if (is_joint(program.loss)) sizes = {all};
  const bool is_shared = is_squared(program.loss);
  const double widest = is_shared ? used : *std::max_element(sizes.begin(), sizes.end());
  if (N * widest > kMostCopied || widest > kMostVariables)
    return std::numeric_limits<double>::infinity();
  double work = is_shared ? N * used * used / 2 : 0;
  for (const double size : sizes)
    work += (is_shared ? 0 : N * size * size / 2) + size * size * size / 6;
  return work / (2 * N * static_cast<double>(samples.P * program.c * samples.D));
}

void newton_steps(const ConvexProgram<double>& program, const Samples<double>& samples,
                  std::vector<double>& Z, double accuracy,
                  const std::function<bool(double)>& after_step) {
  Workspace space;
  std::unique_ptr<SharedGram> gram;
  if (is_squared(program.loss))
    gram = std::make_unique<SharedGram>(program, samples,
                                        active_groups(program, samples, Z, 0, program.c));
  std::vector<System> systems;
  const int64_t own = is_joint(program.loss) ? program.c : 1;
  systems.reserve(program.c / own);
  for (int64_t l = 0; l < program.c; l += own)
    systems.emplace_back(program, samples, Z, l, l + own, gram.get(), space);
  while (true) {
    bool moved = false;
    double objective = 0;
    for (auto& system : systems) {
      moved |= system.advance(accuracy);
      objective += system.objective();
    }
    if (!moved || !after_step(objective)) return;
  }
}

}  // namespace kktorch::csrc
