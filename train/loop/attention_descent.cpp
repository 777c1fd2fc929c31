#include "train/loop/attention_descent.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace kktorch {
namespace {

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// C [rows, columns] = A B; A(i, p) = A[i * a_row + p * a_column], B likewise.
void multiply(const std::vector<double>& A, int64_t a_row, int64_t a_column,
              const std::vector<double>& B, int64_t b_row, int64_t b_column, int64_t rows,
              int64_t columns, int64_t inner, std::vector<double>& C) {
  C.assign(rows * columns, 0.0);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t p = 0; p < inner; ++p)
      for (int64_t j = 0; j < columns; ++j)
        C[i * columns + j] += A[i * a_row + p * a_column] * B[p * b_row + j * b_column];
}

}  // namespace

double ngd_update(std::vector<double>& parameters, const std::vector<double>& gradient, double lr,
                  double eps) {
  const double length = std::sqrt(dot(gradient, gradient)) + eps;
  if (length == 0) return 0;
  const double step = lr / length;
  for (size_t i = 0; i < parameters.size(); ++i) parameters[i] -= step * gradient[i];
  return step;
}

AttentionDescent::AttentionDescent(const csrc::AttentionModel& model,
                                   const AttentionDescentOptions& options,
                                   std::vector<double> weights, int64_t iteration)
    : model_(model), options_(options), path_(model.sets.nnz()), iteration_(iteration) {
  const int64_t dx = model.sets.dx, dz = model.sets.dz, m = options.m;
  dW_.resize(dx * dz);
  if (m > 0) {
    K_.assign(weights.begin(), weights.begin() + dx * m);
    Q_.assign(weights.begin() + dx * m, weights.end());
  } else {
    W_ = std::move(weights);
  }
  evaluate();
}

void AttentionDescent::evaluate() {
  const int64_t dx = model_.sets.dx, dz = model_.sets.dz;
  if (options_.m > 0) multiply(K_, options_.m, 1, Q_, 1, options_.m, dx, dz, options_.m, W_);
  csrc::attention_logits(model_, W_.data(), logits_);
  csrc::evaluate_attention(model_, logits_.data(), state_);
}

void AttentionDescent::step() {
  csrc::attention_gradient(model_, state_, dW_.data());
  gradient_norm_ = std::sqrt(dot(dW_, dW_));
  double step = options_.lr / (gradient_norm_ + options_.eps);
  if (options_.m > 0)
    step_factors();
  else
    step = ngd_update(W_, dW_, options_.lr, options_.eps);
  if (gradient_norm_ > 0)
    for (size_t k = 0; k < path_.size(); ++k) path_[k] += step * state_.g[k];
  evaluate();
  ++iteration_;
}

bool AttentionDescent::run(int64_t last,
                           const std::function<bool(const AttentionDescent&)>& observe) {
  while (true) {
    if (!observe(*this)) return false;
    if (iteration_ >= last) return true;
    step();
  }
}

void AttentionDescent::step_factors() {
  const int64_t dx = model_.sets.dx, dz = model_.sets.dz, m = options_.m;
  std::vector<double> dK, dQ;
  multiply(dW_, dz, 1, Q_, m, 1, dx, m, dz, dK);
  multiply(dW_, 1, dz, K_, m, 1, dz, m, dx, dQ);
  for (size_t i = 0; i < K_.size(); ++i) dK[i] += 2 * options_.eps * K_[i];
  for (size_t i = 0; i < Q_.size(); ++i) dQ[i] += 2 * options_.eps * Q_[i];
  ngd_update(K_, dK, options_.lr, options_.eps);
  ngd_update(Q_, dQ, options_.lr, options_.eps);
}

double AttentionDescent::mean_probability() const {
  double sum = 0;
  for (int64_t q = 0; q < model_.sets.Q; ++q)
    sum += state_.s[model_.sets.row_ptr[q] + state_.argmax[q]];
  return sum / static_cast<double>(model_.sets.Q);
}

double AttentionDescent::least_probability() const {
  double least = 1;
  for (int64_t q = 0; q < model_.sets.Q; ++q)
    least = std::min(least, state_.s[model_.sets.row_ptr[q] + state_.argmax[q]]);
  return least;
}

}  // namespace kktorch
