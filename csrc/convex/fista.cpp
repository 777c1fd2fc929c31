#include "csrc/convex/fista.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace kktorch::csrc {

std::string_view status_name(Status status) {
  constexpr std::string_view kNames[] = {"converged",  "null_solution",   "max_iter",
                                         "time_limit", "precision_limit", "interrupted"};
  return kNames[static_cast<int>(status)];
}

template <typename T>
Fista<T>::Fista(const ConvexProgram<T>& program, double lip)
    : program_(program), lip_(lip), best_dual_(-std::numeric_limits<double>::infinity()) {
  const int64_t outputs = program.design->N() * program.outputs();
  const int64_t map = program.penalty->map_size();
  for (auto* a : {&AZ_, &AV_, &An_, &AVn_, &R_, &Rn_}) a->assign(outputs, T(0));
  for (auto* a : {&G_, &Gn_}) a->assign(map, T(0));
  if (program.penalty->state_size() != map) map_.assign(map, T(0));
}

/// Predictions An of Z and AVn of Z + m (Z - Z_), Rn and Gn there, da2; returns the loss of An.
template <typename T>
double Fista<T>::pass(const std::vector<T>& Z, double m) {
  const auto& p = program_;
  const int64_t outputs = p.outputs(), q = p.rows_per_sample;
  const T momentum = static_cast<T>(m);
  struct Sums {
    double loss = 0, da2 = 0;
  };
  std::vector<Sums> sums(p.design->blocks());
  const auto head = [&](int64_t block, int64_t first, int64_t count, const T* A) -> const T* {
    const int64_t begin = first * outputs, size = count * outputs;
    auto& sum = sums[block];
    sum.loss = loss_of_rows(p.loss, A, p.targets, first * q, count * q, p.c);
    for (int64_t j = 0; j < size; ++j) {
      const double step = double(A[j]) - AV_[begin + j];
      sum.da2 += step * step;
      An_[begin + j] = A[j];
      AVn_[begin + j] = A[j] + momentum * (A[j] - AZ_[begin + j]);
    }
    gradient_of_rows(p.loss, AVn_.data() + begin, p.targets, first * q, count * q, p.c,
                     Rn_.data() + begin);
    return Rn_.data() + begin;
  };
  p.design->pass(p.penalty->map(Z.data(), map_.data()), outputs, head, Gn_.data());
  double loss = 0;
  da2_ = 0;
  for (const auto& sum : sums) {
    loss += sum.loss;
    da2_ += sum.da2;
  }
  return loss;
}

template <typename T>
void Fista<T>::start(std::vector<T> Z) {
  Z_ = std::move(Z);
  Zprev_ = Z_;
  Zn_.resize(Z_.size());
  t_ = 1;
  m_ = 0;
  loss_ = pass(Z_, 0);
  penalty_ = program_.penalty->value(Z_.data());
  AZ_ = An_;
  AV_ = An_;
  std::swap(R_, Rn_);
  std::swap(G_, Gn_);
  evaluate_dual();
}

template <typename T>
void Fista<T>::step() {
  const double mu = smoothness(program_.loss);
  constexpr double kRounding = 8 * std::numeric_limits<T>::epsilon();
  Sweep sweep;
  double t, m, loss;
  while (true) {
    sweep = program_.penalty->sweep(Z_.data(), Zprev_.data(), m_, G_.data(), lip_, program_.beta,
                                    Zn_.data());
    t = sweep.rdot > 0 ? 1 : (1 + std::sqrt(1 + 4 * t_ * t_)) / 2;
    m = sweep.rdot > 0 ? 0 : (t_ - 1) / t;
    loss = pass(Zn_, m);
    // No difference of objectives here: it would cancel near the optimum.
    if (sweep.dz2 <= kRounding * kRounding * sweep.zz || mu * da2_ <= lip_ * sweep.dz2 * (1 + 1e-9))
      break;
    lip_ = std::max(1.1 * mu * da2_ / sweep.dz2, 1.1 * lip_);
    ++backtracks_;
  }
  restarts_ += sweep.rdot > 0;
  std::swap(Zprev_, Z_);
  std::swap(Z_, Zn_);
  std::swap(AZ_, An_);
  std::swap(AV_, AVn_);
  std::swap(R_, Rn_);
  std::swap(G_, Gn_);
  t_ = t;
  m_ = m;
  loss_ = loss;
  penalty_ = sweep.penalty;
  evaluate_dual();
}

template <typename T>
void Fista<T>::evaluate_dual() {
  const auto& p = program_;
  dual_norm_ = p.penalty->dual_norm(G_.data());
  dual_ = dual_point(p.loss, R_.data(), p.targets, p.rows(), p.c, dual_norm_, p.beta,
                     p.design->parallel());
  if (!(dual_.value > best_dual_)) return;
  best_dual_ = dual_.value;
  multipliers_.resize(R_.size());
  for (size_t j = 0; j < R_.size(); ++j) multipliers_[j] = static_cast<T>(dual_.scale * R_[j]);
}

template class Fista<double>;
template class Fista<float>;

}  // namespace kktorch::csrc
