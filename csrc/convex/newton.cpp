#include "csrc/convex/newton.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/svm/dense.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kMostEntries = 1 << 24;  // of the active features
constexpr int64_t kMostVariables = 3000;   // of a system
constexpr double kRounding = 1e-13;        // of an objective, relative
constexpr int64_t kColumns = 256;          // of the Gram matrix at a time

struct Group {
  int64_t index, p, l, k;
};

/// The groups that are not zero, by outputs.
std::vector<Group> active_groups(const ConvexProgram<double>& program,
                                 const std::vector<double>& Z) {
  const auto& penalty = static_cast<const GroupPenalty<double>&>(*program.penalty);
  const int64_t d = penalty.d(), n = program.design->samples().D / d, c = program.c;
  std::vector<Group> groups;
  for (int64_t l = 0; l < c; ++l)
    for (int64_t p = 0; p < program.design->samples().P; ++p)
      for (int64_t k = 0; k < n; ++k) {
        const int64_t g = (p * c + l) * n + k;
        const auto* z = Z.data() + g * d;
        if (std::any_of(z, z + d, [](double x) { return x != 0; })) groups.push_back({g, p, l, k});
      }
  return groups;
}

/// Variables [begin, end) of one system.
struct Range {
  int64_t begin, end;
};

class Newton {
 public:
  Newton(const ConvexProgram<double>& program, std::vector<double>& Z)
      : program_(program),
        samples_(program.design->samples()),
        N_(samples_.N),
        c_(program.c),
        d_(static_cast<const GroupPenalty<double>&>(*program.penalty).d()),
        Z_(Z) {
    gather();
    objective_ = objective_at(z_, A_);
  }

  void run(double accuracy, const std::function<bool(double)>& after_step) {
    double before = std::numeric_limits<double>::infinity();
    while (!groups_.empty()) {
      const double now = gradient();
      // Where rounding hides what a step gains, its gradient has to fall instead.
      if (now <= accuracy * program_.beta || (is_last_ && now > before / 2) || !step()) return;
      if (!after_step(objective_)) return;
      before = now;
    }
  }

 private:
  int64_t size() const { return static_cast<int64_t>(groups_.size()) * d_; }
  int64_t output_of(int64_t variable) const { return groups_[variable / d_].l; }

  /// The active part of Z and its features [N, m], zero where the gate is closed.
  void gather() {
    groups_ = active_groups(program_, Z_);
    const int64_t m = size();
    z_.resize(m);
    F_.resize(N_ * m);
    for (size_t j = 0; j < groups_.size(); ++j)
      std::copy_n(Z_.data() + groups_[j].index * d_, d_, z_.data() + j * d_);
    program_.design->parallel()(N_, [&](int64_t i) {
      for (size_t j = 0; j < groups_.size(); ++j) {
        double* to = F_.data() + i * m + static_cast<int64_t>(j) * d_;
        if (samples_.gate && !samples_.gate[i * samples_.P + groups_[j].p])
          std::fill_n(to, d_, 0.);
        else
          std::copy_n(samples_.wide + i * samples_.D + groups_[j].k * d_, d_, to);
      }
    });
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
        for (int64_t j = ranges_[l].begin; j < ranges_[l].end; ++j) sum += F_[i * m + j] * z[j];
        A[i * c_ + l] = sum;
      }
    });
    double penalty = 0;
    for (int64_t j = 0; j < m; j += d_) penalty += norm(z.data() + j, d_);
    return loss_of_rows(program_.loss, A.data(), program_.targets, 0, N_, c_) +
           program_.beta * penalty;
  }

  /// Fills g_; returns the largest norm of a group of it.
  double gradient() {
    const int64_t m = size();
    R_.resize(N_ * c_);
    gradient_of_rows(program_.loss, A_.data(), program_.targets, 0, N_, c_, R_.data());
    g_.assign(m, 0.);
    for (int64_t i = 0; i < N_; ++i)
      for (int64_t l = 0; l < c_; ++l) {
        const double r = R_[i * c_ + l];
        for (int64_t j = ranges_[l].begin; j < ranges_[l].end; ++j) g_[j] += r * F_[i * m + j];
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
    std::vector<double> w(N_ * c_, smoothness(program_.loss));
    if (program_.loss == Loss::kLogistic)
      for (size_t j = 0; j < w.size(); ++j) w[j] = std::abs(R_[j]) * (1 - std::abs(R_[j]));
    if (program_.loss == Loss::kCrossEntropy)
      for (int64_t i = 0; i < N_; ++i)
        for (int64_t l = 0; l < c_; ++l) {
          const auto& y = program_.targets;
          const double q = y.values ? y.values[i * c_ + l] : static_cast<double>(y.ids[i] == l);
          w[i * c_ + l] = std::clamp(R_[i * c_ + l] + q, 0., 1.);
        }
    return w;
  }

  /// H += sign B' C on the lower triangle, columns [range) of both [N, m].
  void add_gram(double sign, const std::vector<double>& B, const std::vector<double>& C,
                Range range, double* H, int64_t width) const {
    const int64_t m = size();
    for (int64_t first = range.begin; first < range.end; first += kColumns) {
      const int64_t last = std::min(range.end, first + kColumns);
      gemm(range.end - first, last - first, N_, sign, row_major(B.data() + first, m).transposed(),
           row_major(C.data() + first, m), H + (first - range.begin) * (width + 1), width);
    }
  }

  /// The direction of one system, into d.
  bool solve(Range range, const std::vector<double>& w, std::vector<double>& d) const {
    const int64_t m = size(), width = range.end - range.begin;
    std::vector<double> H(width * width), weighted(N_ * m);
    const auto weigh = [&](int64_t j, int64_t i) { return w[i * c_ + output_of(j)]; };
    for (int64_t i = 0; i < N_; ++i)
      for (int64_t j = range.begin; j < range.end; ++j)
        weighted[i * m + j] = weigh(j, i) * F_[i * m + j];
    for (const auto& own : ranges_)
      if (own.begin >= range.begin && own.end <= range.end)
        add_gram(1, F_, weighted, own, H.data() + (own.begin - range.begin) * (width + 1), width);
    if (program_.loss == Loss::kCrossEntropy)
      add_gram(-1, weighted, weighted, range, H.data(), width);
    double top = 0;
    for (int64_t j = 0; j < width; ++j) top = std::max(top, H[j * width + j]);
    add_penalty(range, H.data(), width);
    for (double ridge = 1e-12 * top; ridge <= top; ridge *= 1e3) {
      auto L = H;
      for (int64_t j = 0; j < width; ++j) L[j * width + j] += ridge;
      if (!cholesky(L.data(), width, 1e-3 * ridge)) continue;
      for (int64_t j = range.begin; j < range.end; ++j) d[j] = -g_[j];
      cholesky_solve(L.data(), width, d.data() + range.begin);
      return true;
    }
    return false;
  }

  /// Curvature of the norms.
  void add_penalty(Range range, double* H, int64_t width) const {
    for (int64_t j = range.begin; j < range.end; j += d_) {
      const double length = norm(z_.data() + j, d_), scale = program_.beta / length;
      for (int64_t a = 0; a < d_; ++a)
        for (int64_t b = 0; b <= a; ++b)
          H[(j - range.begin + a) * width + j - range.begin + b] +=
              scale * ((a == b) - z_[j + a] / length * (z_[j + b] / length));
    }
  }

  bool step() {
    const int64_t m = size();
    std::vector<double> d(m), trial(m), A;
    const auto w = curvature();
    const bool joint = program_.loss == Loss::kCrossEntropy;
    for (const auto& range : joint ? std::vector<Range>{{0, m}} : ranges_)
      if (range.end > range.begin && !solve(range, w, d)) return false;
    double slope = 0;
    for (int64_t j = 0; j < m; ++j) slope += g_[j] * d[j];
    for (double t = 1; t > 1e-6; t /= 2) {
      bool dropped = false;
      for (int64_t j = 0; j < m; j += d_) {
        double along = 0;
        for (int64_t q = j; q < j + d_; ++q) {
          trial[q] = z_[q] + t * d[q];
          along += trial[q] * z_[q];
        }
        if (along > 0) continue;
        std::fill_n(trial.data() + j, d_, 0.);
        dropped = true;
      }
      const double objective = objective_at(trial, A);
      const double rounding = kRounding * std::abs(objective_);
      if (!(objective <= objective_ + 1e-4 * t * slope + rounding)) continue;
      is_last_ = -slope < rounding;
      accept(trial, A, objective, dropped);
      return true;
    }
    return false;
  }

  void accept(const std::vector<double>& trial, std::vector<double>& A, double objective,
              bool dropped) {
    for (size_t j = 0; j < groups_.size(); ++j)
      std::copy_n(trial.data() + j * d_, d_, Z_.data() + groups_[j].index * d_);
    z_ = trial;
    std::swap(A_, A);
    objective_ = objective;
    if (dropped) gather();
  }

  const ConvexProgram<double>& program_;
  const Samples<double>& samples_;
  const int64_t N_, c_, d_;
  std::vector<double>& Z_;
  std::vector<Group> groups_;
  std::vector<Range> ranges_;  ///< of every output
  std::vector<double> z_, F_, A_, R_, g_;
  double objective_ = 0;
  bool is_last_ = false;  ///< the last step gained less than rounding shows
};

}  // namespace

double newton_cost(const ConvexProgram<double>& program, const std::vector<double>& Z) {
  const auto& samples = program.design->samples();
  const int64_t d = static_cast<const GroupPenalty<double>&>(*program.penalty).d();
  std::vector<double> sizes(program.c);
  for (const auto& group : active_groups(program, Z)) sizes[group.l] += static_cast<double>(d);
  double m = 0;
  for (const double size : sizes) m += size;
  const auto N = static_cast<double>(samples.N);
  const bool joint = program.loss == Loss::kCrossEntropy;
  if (joint) sizes = {m};
  if (N * m > kMostEntries || *std::max_element(sizes.begin(), sizes.end()) > kMostVariables)
    return std::numeric_limits<double>::infinity();
  double work = 0;
  for (const double size : sizes) work += N * size * size / 2 + size * size * size / 6;
  return work / (2 * N * static_cast<double>(samples.P * program.c * samples.D));
}

void newton_steps(const ConvexProgram<double>& program, std::vector<double>& Z, double accuracy,
                  const std::function<bool(double)>& after_step) {
  Newton(program, Z).run(accuracy, after_step);
}

}  // namespace kktorch::csrc
