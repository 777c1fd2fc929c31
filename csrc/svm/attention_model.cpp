#include "csrc/svm/attention_model.h"

#include <algorithm>
#include <cmath>

namespace kktorch::csrc {
namespace {

/// Probabilities of one set; the position of the largest.
int64_t softmax(const double* logits, int64_t size, double* s) {
  const int64_t top = std::max_element(logits, logits + size) - logits;
  double total = 0;
  for (int64_t t = 0; t < size; ++t) total += s[t] = std::exp(logits[t] - logits[top]);
  for (int64_t t = 0; t < size; ++t) s[t] /= total;
  return top;
}

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// h(o), and its gradient at o.
double head_value(const AttentionModel& model, const double* o, double* gradient) {
  const int64_t dx = model.sets.dx;
  if (model.head == AttentionHead::kLinear) {
    std::copy_n(model.v, dx, gradient);
    return dot(model.v, o, dx);
  }
  if (model.head == AttentionHead::kQuad) {
    for (int64_t d = 0; d < dx; ++d) gradient[d] = model.v[d] - 2 * model.lbd * o[d];
    return dot(model.v, o, dx) - model.lbd * dot(o, o, dx);
  }
  std::fill_n(gradient, dx, 0.0);
  double value = 0;
  for (int64_t r = 0; r < model.units; ++r) {
    const double* row = model.v + r * dx;
    const double unit = dot(row, o, dx);
    if (unit <= 0) continue;
    value += unit;
    for (int64_t d = 0; d < dx; ++d) gradient[d] += row[d];
  }
  return value;
}

}  // namespace

double margin_loss(MarginLoss loss, double u) {
  if (loss == MarginLoss::kLinear) return -u;
  if (loss == MarginLoss::kExponential) return std::exp(-u);
  return u > 0 ? std::log1p(std::exp(-u)) : std::log1p(std::exp(u)) - u;
}

double margin_loss_weight(MarginLoss loss, double u) {
  if (loss == MarginLoss::kLinear) return 1;
  if (loss == MarginLoss::kExponential) return std::exp(-u);
  return 1 / (1 + std::exp(u));
}

void attention_logits(const AttentionModel& model, const double* W, std::vector<double>& logits) {
  const int64_t dx = model.sets.dx, dz = model.sets.dz;
  logits.resize(model.sets.nnz());
  std::vector<double> y(dx);
  for (int64_t q = 0; q < model.sets.Q; ++q) {
    for (int64_t d = 0; d < dx; ++d) y[d] = dot(W + d * dz, model.sets.query(q), dz);
    for (int64_t k = model.sets.row_ptr[q]; k < model.sets.row_ptr[q + 1]; ++k)
      logits[k] = dot(model.sets.token(k), y.data(), dx);
  }
}

void evaluate_attention(const AttentionModel& model, const double* logits, AttentionState& state) {
  const auto& sets = model.sets;
  const int64_t dx = sets.dx;
  for (auto* values : {&state.s, &state.gamma, &state.g}) values->resize(model.sets.nnz());
  state.f.resize(sets.Q);
  state.argmax.resize(sets.Q);
  state.risk = 0;
  std::vector<double> o(dx), direction(dx);
  for (int64_t q = 0; q < sets.Q; ++q) {
    const int64_t begin = sets.row_ptr[q], size = sets.row_ptr[q + 1] - begin;
    double* const s = state.s.data() + begin;
    double* const gamma = state.gamma.data() + begin;
    double* const g = state.g.data() + begin;
    const int64_t top = state.argmax[q] = softmax(logits + begin, size, s);
    std::fill(o.begin(), o.end(), 0.0);
    for (int64_t t = 0; t < size; ++t)
      for (int64_t d = 0; d < dx; ++d) o[d] += s[t] * sets.token(begin + t)[d];
    const double label = model.labels[q];
    const double u = label * (state.f[q] = head_value(model, o.data(), direction.data()));
    state.risk += margin_loss(model.loss, u) / model.inputs;
    const double weight = margin_loss_weight(model.loss, u) / model.inputs;
    double average = 0, others = 0;
    for (int64_t t = 0; t < size; ++t) {
      gamma[t] = label * dot(direction.data(), sets.token(begin + t), dx);
      average += s[t] * gamma[t];
    }
    for (int64_t t = 0; t < size; ++t)
      if (t != top) others += g[t] = weight * s[t] * (average - gamma[t]);
    g[top] = -others;
  }
}

void attention_gradient(const AttentionModel& model, const AttentionState& state, double* dW) {
  const auto& sets = model.sets;
  const int64_t dx = sets.dx, dz = model.sets.dz;
  std::fill_n(dW, dx * dz, 0.0);
  std::vector<double> u(dx);
  for (int64_t q = 0; q < sets.Q; ++q) {
    const int64_t begin = sets.row_ptr[q];
    const double* const top = sets.token(begin + state.argmax[q]);
    std::fill(u.begin(), u.end(), 0.0);
    for (int64_t k = begin; k < sets.row_ptr[q + 1]; ++k) {
      const double* const x = sets.token(k);
      for (int64_t d = 0; d < dx; ++d) u[d] += state.g[k] * (x[d] - top[d]);
    }
    for (int64_t d = 0; d < dx; ++d)
      for (int64_t e = 0; e < dz; ++e) dW[d * dz + e] += u[d] * sets.query(q)[e];
  }
}

}  // namespace kktorch::csrc
