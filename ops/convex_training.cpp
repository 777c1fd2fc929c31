#include "ops/convex_training.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numbers>

#include "ops/convex/inputs.h"
#include "ops/convex/interrupt.h"
#include "ops/convex/prepared.h"
#include "ops/convex_attention.h"
#include "ops/convex_solver.h"
#include "ops/simplex_project.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

/// Prox of (t/2) |x|_1^2 on every row: |v| sorted descending with sums s_r, lambda_r =
/// t s_r / (1 + t r) at the last r whose entry is above its lambda_r; x = sign(v) (|v| - lambda)+.
Tensor prox_squared_l1(const Tensor& v, double t) {
  const auto sorted = std::get<0>(v.abs().sort(-1, true));
  const auto r = at::arange(1, v.size(-1) + 1, v.options());
  const auto lambda = t * sorted.cumsum(-1) / (1 + t * r);
  const auto last = (sorted.gt(lambda).sum(-1, true) - 1).clamp_min(0);
  return v.sign() * (v.abs() - lambda.gather(-1, last)).clamp_min(0);
}

/// The data, and what heads predict on it.
class Problem {
 public:
  Problem(const Tensor& X, const Tensor& Y, double beta, const FactoredOptions& options)
      : X(X.to(at::kDouble).contiguous()),
        Y((Y.is_floating_point() ? Y.to(at::kDouble) : Y).contiguous()),
        beta(beta),
        loss(detail::loss_of("train_factored", options.loss)),
        n(X.size(1)),
        d(X.size(2)),
        c(detail::outputs_of(Y, options.classes)),
        P(options.gate ? options.gate->size(1) : 1) {
    if (options.gate) gate = options.gate->to(at::kDouble);
    Phi = this->X.flatten(1);
  }

  struct Predictions {
    Tensor A;       ///< A_il = sum_j g_ij (w1_j' X_i w2_j) w3_jl, [N, c]
    Tensor scores;  ///< g_ij w1_j' X_i w2_j, [N, h]; none where A came without them
  };
  /// @param scores  of the same w1 and w2, if they are known.
  Predictions predictions(const Heads& heads, const Tensor& scores = {}) const {
    if (is_wide(heads)) return {convex_predict(X, heads_to_z(heads, P), gate_or_none()), {}};
    const auto S = scores.defined() ? scores : gated(Phi.matmul(outer(heads).t()), heads);
    return {S.matmul(heads.w3), S};
  }

  csrc::Targets<double> targets() const { return detail::targets_of<double>(Y); }
  double loss_of(const Tensor& A) const {
    return csrc::loss_of_rows(loss, A.contiguous().const_data_ptr<double>(), targets(), 0,
                              A.size(0), c);
  }
  Tensor residual(const Tensor& A) const {
    const auto dense = A.contiguous();
    auto R = at::empty_like(dense);
    csrc::gradient_of_rows(loss, dense.const_data_ptr<double>(), targets(), 0, A.size(0), c,
                           R.mutable_data_ptr<double>());
    return R;
  }
  double penalty_of(const Heads& heads) const {
    return beta / 2 *
           (heads.w2.square().sum() + heads.w3.abs().sum(1).square().sum()).item<double>();
  }
  double objective(const Heads& heads) const {
    return loss_of(predictions(heads).A) + penalty_of(heads);
  }

  /// What gradients are made of, at the heads that predicted `now`; those that are wanted.
  struct Sums {
    Tensor C;   ///< sum_i g_ij (R w3')_ij X_i, [h, n, d]: dw1_j = C_j w2_j, dw2_j = C_j' w1_j
    Tensor w3;  ///< sum_i g_ij (w1_j' X_i w2_j) R_il, [h, c]
  };
  Sums sums(const Predictions& now, const Heads& heads, bool C = true, bool w3 = true) const {
    const auto R = residual(now.A);
    Sums sums;
    if (!is_wide(heads)) {
      if (C) sums.C = gated(R.matmul(heads.w3.t()), heads).t().matmul(Phi).view({-1, n, d});
      if (w3) sums.w3 = now.scores.t().matmul(R);
      return sums;
    }
    const auto h = heads.w1.size(0);
    const auto own = outer(heads);
    if (C) sums.C = at::empty({h, n * d}, X.options());
    if (w3) sums.w3 = at::empty({h, c}, X.options());
    for (int64_t p = 0; p < P; ++p) {
      const auto G = (gate.defined() ? R * gate.select(1, p).unsqueeze(1) : R).t().matmul(Phi);
      const auto rows = heads.gate_id.eq(p).nonzero().squeeze(1);
      if (C) sums.C.index_copy_(0, rows, heads.w3.index_select(0, rows).matmul(G));
      if (w3) sums.w3.index_copy_(0, rows, own.index_select(0, rows).matmul(G.t()));
    }
    if (C) sums.C = sums.C.view({h, n, d});
    return sums;
  }

  Tensor X, Y, gate, Phi;
  double beta;
  csrc::Loss loss;
  int64_t n, d, c, P;

 private:
  /// Are there more heads than columns of the effective Z? The samples are then multiplied by Z.
  bool is_wide(const Heads& heads) const { return P * c < heads.w1.size(0); }

  Tensor outer(const Heads& heads) const {
    return (heads.w1.unsqueeze(2) * heads.w2.unsqueeze(1)).flatten(1);
  }
  Tensor gated(const Tensor& S, const Heads& heads) const {
    return gate.defined() ? S * gate.index_select(1, heads.gate_id) : S;
  }
  OptionalTensor gate_or_none() const {
    return gate.defined() ? OptionalTensor(gate) : std::nullopt;
  }
};

Tensor grad_w1(const Tensor& C, const Heads& heads) { return (C * heads.w2.unsqueeze(1)).sum(2); }
Tensor grad_w2(const Tensor& C, const Heads& heads) { return (C * heads.w1.unsqueeze(2)).sum(1); }

/// The scaling between w2 and w3 whose penalty is least; dead heads become zero.
void balance(Heads& heads) {
  const auto size2 = heads.w2.norm(2, {1}), size3 = heads.w3.abs().sum(1);
  const auto alive = size2.gt(0).logical_and(size3.gt(0));
  const auto factor = at::where(alive, (size3 / size2).sqrt(), 0.);
  heads.w2 = heads.w2 * factor.unsqueeze(1);
  heads.w3 = heads.w3 * at::where(alive, 1 / factor, 0.).unsqueeze(1);
}

/// One optimiser: advance() is an iteration and returns the objective.
class Optimiser {
 public:
  virtual ~Optimiser() = default;
  virtual double advance(Heads& heads) = 0;
  virtual bool has_stalled() const { return false; }
};

/// Cyclic proximal steps with backtracking on w1, w2, w3 (Bolte, Sabach, Teboulle 2014).
class Palm : public Optimiser {
 public:
  explicit Palm(const Problem& problem) : problem_(problem) {}

  double advance(Heads& heads) override {
    if (++cycle_ % kBalance == 0) balance(heads);
    if (cycle_ == 1 || cycle_ % kBalance == 0) now_ = problem_.predictions(heads);
    for (int block = 0; block < 3; ++block) step(heads, block);
    const double objective = problem_.loss_of(now_.A) + problem_.penalty_of(heads);
    if (cycle_ % kStall == 0) {
      stalled_ = before_ - objective < 1e-9 * std::abs(objective);
      before_ = objective;
    }
    return objective;
  }
  bool has_stalled() const override { return stalled_; }

 private:
  static constexpr int64_t kBalance = 50, kStall = 50;

  Tensor gradient(const Heads& heads, int block) const {
    const auto sums = problem_.sums(now_, heads, block != 2, block == 2);
    if (block == 2) return sums.w3;
    return block == 0 ? grad_w1(sums.C, heads) : grad_w2(sums.C, heads);
  }
  Tensor prox(const Tensor& w, int block, double lip) const {
    const double t = problem_.beta / lip;
    if (block == 0) return simplex_project(w);
    return block == 1 ? w / (1 + t) : prox_squared_l1(w, t);
  }

  void step(Heads& heads, int block) {
    Tensor& w = block == 0 ? heads.w1 : block == 1 ? heads.w2 : heads.w3;
    const Tensor before = w;
    const double f = problem_.loss_of(now_.A);
    const auto g = gradient(heads, block);
    double& lip = lip_[block];
    for (lip *= 0.7;; lip *= 2) {
      w = prox(before - g / lip, block, lip);
      const auto D = w - before;
      const double square = D.square().sum().item<double>();
      const double bound = f + (g * D).sum().item<double>() + lip / 2 * square;
      const auto trial = problem_.predictions(heads, block == 2 ? now_.scores : Tensor());
      const double now = problem_.loss_of(trial.A);
      if (!(now <= bound + 1e-14 * std::abs(f) || lip > 1e30)) continue;
      now_ = trial;
      return;
    }
  }

  const Problem& problem_;
  Problem::Predictions now_;  ///< of the heads as they are
  double lip_[3] = {1, 1, 1}, before_ = std::numeric_limits<double>::infinity();
  int64_t cycle_ = 0;
  bool stalled_ = false;
};

/// Full-batch Adam (betas 0.9, 0.999), the rate falling to 0 over `steps`.
class Adam : public Optimiser {
 public:
  Adam(const Problem& problem, const Heads& heads, bool softmax, double lr, int64_t steps)
      : problem_(problem), softmax_(softmax), lr_(lr), steps_(steps) {
    if (softmax) logits_ = (heads.w1 + 1e-8).log();
    for (const auto& w : {heads.w1, heads.w2, heads.w3}) {
      first_.push_back(at::zeros_like(w));
      second_.push_back(at::zeros_like(w));
    }
  }

  double advance(Heads& heads) override {
    const auto sums = problem_.sums(step_ > 0 ? now_ : problem_.predictions(heads), heads);
    auto g1 = grad_w1(sums.C, heads);
    const auto g2 = grad_w2(sums.C, heads) + problem_.beta * heads.w2;
    const auto g3 = sums.w3 + problem_.beta * heads.w3.abs().sum(1, true) * heads.w3.sign();
    ++step_;
    if (softmax_) {
      g1 = heads.w1 * (g1 - (heads.w1 * g1).sum(1, true));
      logits_ = moved(logits_, g1, 0);
      heads.w1 = logits_.softmax(1);
    } else {
      heads.w1 = simplex_project(moved(heads.w1, g1, 0));
    }
    heads.w2 = moved(heads.w2, g2, 1);
    heads.w3 = moved(heads.w3, g3, 2);
    now_ = problem_.predictions(heads);
    return problem_.loss_of(now_.A) + problem_.penalty_of(heads);
  }

 private:
  Tensor moved(const Tensor& w, const Tensor& g, int block) {
    first_[block] = 0.9 * first_[block] + 0.1 * g;
    second_[block] = 0.999 * second_[block] + 0.001 * g * g;
    const auto t = static_cast<double>(step_);
    const double rate =
        lr_ * (1 + std::cos(std::numbers::pi * t / static_cast<double>(steps_))) / 2;
    const auto root = (second_[block] / (1 - std::pow(0.999, t))).sqrt() + 1e-8;
    return w - rate / (1 - std::pow(0.9, t)) * first_[block] / root;
  }

  const Problem& problem_;
  bool softmax_;
  double lr_;
  int64_t steps_, step_ = 0;
  Tensor logits_;
  Problem::Predictions now_;  ///< of the heads as they are, after the first step
  std::vector<Tensor> first_, second_;
};

class Training {
 public:
  Training(const Tensor& X, const Tensor& Y, double beta, const FactoredOptions& options)
      : problem_(X, Y, beta, options),
        options_(options),
        interrupt_(options.catch_interrupt),
        lr_(options.lr) {
    program_.loss = options.loss;
    program_.gate = options.gate;
    program_.classes = problem_.c;
  }

  FactoredResult train() {
    auto heads = options_.start ? checked(*options_.start) : drawn();
    result_.objective = std::numeric_limits<double>::infinity();
    result_.D = -std::numeric_limits<double>::infinity();
    while (true) {
      round(heads);
      if (!result_.status.empty()) break;
      if (!options_.escape || result_.escapes == options_.max_escapes) {
        result_.status = options_.escape ? "max_escapes" : "stationary";
        break;
      }
      if (!escape()) break;
      heads = result_.heads;
      ++result_.escapes;
    }
    result_.history = at::tensor(rows_, at::kDouble).view({-1, 3});
    return result_;
  }

 private:
  Heads drawn() const {
    TORCH_CHECK_VALUE(options_.heads >= 1, "train_factored: expected heads >= 1, but got ",
                      options_.heads);
    auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(options_.seed));
    const auto normal = [&](int64_t width) {
      return at::randn({options_.heads, width}, generator, at::kDouble);
    };
    const auto n = static_cast<double>(problem_.n);
    return {simplex_project(1 / n + 0.1 * normal(problem_.n)), 0.3 * normal(problem_.d),
            0.3 * normal(problem_.c), at::arange(options_.heads, at::kLong) % problem_.P};
  }

  Heads checked(const Heads& start) const {
    const int64_t h = start.w1.size(0);
    TORCH_CHECK(start.w1.sizes() == at::IntArrayRef({h, problem_.n}) &&
                    start.w2.sizes() == at::IntArrayRef({h, problem_.d}) &&
                    start.w3.sizes() == at::IntArrayRef({h, problem_.c}),
                "train_factored: expected a start w1 [h, ", problem_.n, "], w2 [h, ", problem_.d,
                "], w3 [h, ", problem_.c, "], but got ", start.w1.sizes(), ", ", start.w2.sizes(),
                ", ", start.w3.sizes());
    detail::check_gate_id("train_factored", start.gate_id, h, problem_.P);
    TORCH_CHECK_VALUE(start.w2.ne(0).any().item<bool>() && start.w3.ne(0).any().item<bool>(),
                      "train_factored: expected a start with a head that is not zero (a saddle), "
                      "but got zeros");
    return {simplex_project(start.w1.to(at::kDouble)), start.w2.to(at::kDouble),
            start.w3.to(at::kDouble), start.gate_id};
  }

  /// Trains from `heads`; keeps the result if it is the best. Sets the status when all is done.
  void round(Heads heads) {
    std::unique_ptr<Optimiser> optimiser;
    if (options_.optimiser == "palm")
      optimiser = std::make_unique<Palm>(problem_);
    else
      optimiser = std::make_unique<Adam>(problem_, heads, options_.optimiser == "adam_softmax", lr_,
                                         options_.max_iter);
    double objective = problem_.objective(heads);
    bool interrupted = false;
    for (int64_t i = 0; i < options_.max_iter && !optimiser->has_stalled() && !interrupted; ++i) {
      objective = optimiser->advance(heads);
      ++result_.iterations;
      rows_.insert(rows_.end(), {static_cast<double>(result_.iterations), seconds(), objective});
      interrupted = interrupt_.arrived() ||
                    (options_.progress && !options_.progress(result_.iterations, objective, heads));
    }
    balance(heads);
    objective = problem_.objective(heads);
    if (objective < result_.objective) {
      result_.objective = objective;
      result_.heads = heads;
      certify();
    } else {
      lr_ /= 2;  // this round is discarded
    }
    if (interrupted) result_.status = "interrupted";
    if (result_.gap <= options_.tol_rel * result_.objective) result_.status = "converged";
  }

  Tensor effective() const { return heads_to_z(result_.heads, problem_.P); }

  void certify() {
    const auto c = kktorch::certify(problem_.X, problem_.Y, problem_.beta, effective(), program_,
                                    options_.multipliers);
    result_.D = std::max(result_.D, c.D);
    result_.gap = result_.objective - result_.D;
  }

  /// One proximal step of the convex program from the effective Z, back in heads; false where
  /// there are too few heads for it.
  bool escape() {
    auto one = program_;
    one.Z0 = effective();
    one.max_iter = 1;
    one.screen_every = 0;
    one.tol_rel = 0;
    one.lip = lip_;
    const auto r = solve(problem_.X, problem_.Y, problem_.beta, one);
    lip_ = r.lip;
    auto Z = r.Z;
    const int64_t h = result_.heads.w1.size(0);
    const auto active = [&] { return Z.norm(2, {-1}).gt(0).sum().item<int64_t>(); };
    if (active() > h) Z = reduce_heads(Z, problem_.X, options_.gate);
    if (active() > h) {
      result_.status = "insufficient_heads";
      return false;
    }
    auto heads = recover_heads(Z, h);
    const double objective = problem_.objective(heads);
    if (objective < result_.objective) {
      result_.objective = objective;
      result_.heads = heads;
      certify();
    }
    return true;
  }

  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  Problem problem_;
  const FactoredOptions& options_;
  ConvexOptions program_;
  detail::CaughtInterrupt interrupt_;
  double lr_, lip_ = 0;
  std::vector<double> rows_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  FactoredResult result_;
};

}  // namespace

FactoredResult train_factored(const Tensor& X, const Tensor& Y, double beta,
                              const FactoredOptions& options) {
  ConvexOptions program;
  program.loss = options.loss;
  program.gate = options.gate;
  program.classes = options.classes;
  detail::prepare("train_factored", X, Y, program);
  detail::check_beta("train_factored", beta);
  TORCH_CHECK_VALUE(options.optimiser == "palm" || options.optimiser == "adam" ||
                        options.optimiser == "adam_softmax",
                    "train_factored: expected optimiser one of palm, adam, adam_softmax, but got ",
                    options.optimiser);
  return Training(X, Y, beta, options).train();
}

namespace {

using Trained = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, std::string>;

Trained train_boxed(const Tensor& X, const Tensor& Y, double beta, std::string_view loss,
                    const OptionalTensor& gate, int64_t classes, int64_t heads,
                    std::string_view optimiser, double lr, int64_t max_iter, bool escape,
                    int64_t max_escapes, double tol_rel, int64_t seed, at::TensorList start,
                    const OptionalTensor& multipliers) {
  FactoredOptions options = {.loss = std::string(loss),
                             .gate = gate,
                             .classes = classes,
                             .heads = heads,
                             .optimiser = std::string(optimiser),
                             .lr = lr,
                             .max_iter = max_iter,
                             .escape = escape,
                             .max_escapes = max_escapes,
                             .tol_rel = tol_rel,
                             .seed = seed,
                             .multipliers = multipliers,
                             .catch_interrupt = true};
  if (!start.empty()) options.start = Heads{start[0], start[1], start[2], start[3]};
  const auto r = train_factored(X, Y, beta, options);
  const auto numbers = at::tensor(
      {r.objective, r.D, r.gap, static_cast<double>(r.iterations), static_cast<double>(r.escapes)},
      at::kDouble);
  return {r.heads.w1, r.heads.w2, r.heads.w3, r.heads.gate_id, r.history, numbers, r.status};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def(
      "_convex_train_factored(Tensor X, Tensor Y, float beta, str loss, Tensor? gate, int classes, "
      "int heads, str optimiser, float lr, int max_iter, bool escape, int max_escapes, "
      "float tol_rel, int seed, Tensor[] start, Tensor? multipliers) -> (Tensor w1, Tensor w2, "
      "Tensor w3, Tensor gate_id, Tensor history, Tensor numbers, str status)");
}
TORCH_LIBRARY_IMPL(kktorch, CompositeExplicitAutograd, m) {
  m.impl("_convex_train_factored", &train_boxed);
}

}  // namespace kktorch
