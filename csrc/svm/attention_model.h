#pragma once
// One layer of softmax attention with a fixed head, its risk and the closed form of its gradient
// (the model: Tarzanagh et al., arXiv 2308.16898, section 2). Torch-free, float64.
//
//     L_qt = x_qt^T W z_q    s_q = softmax(L_q)    o_q = sum_t s_qt x_qt    f_q = h(o_q)
//     risk = (1/n) sum_q l(Y_q f_q)
//
// heads   linear  h(o) = v.o        relu  h(o) = sum_r [V_r.o]+      quad  h(o) = v.o - lbd |o|^2
// losses  logistic  log(1 + e^-u)   exponential  e^-u                linear  -u
//
// With c_q = -l'(Y_q f_q) and the scores gamma_qt = Y_q grad h(o_q).x_qt, the softmax Jacobian
// gives
//
//     g_qt := d risk / d L_qt = (c_q / n) s_qt (sum_u s_qu gamma_qu - gamma_qt)
//     d risk / d W = sum_q u_q z_q^T      u_q = sum_t g_qt (x_qt - x_qa)      for any a,
//
// because sum_t g_qt = 0. For a = argmax s the element g_qa is minus the sum of the others:
// relative accuracy survives gradients far below rounding of the scores.
#include <cstdint>
#include <vector>

#include "csrc/svm/token_sets.h"

namespace kktorch::csrc {

enum class AttentionHead { kLinear, kRelu, kQuad };
enum class MarginLoss { kLogistic, kExponential, kLinear };

/// l(u) and c = -l'(u).
double margin_loss(MarginLoss loss, double u);
double margin_loss_weight(MarginLoss loss, double u);

struct AttentionModel {
  TokenSetsView<double> sets;
  const double* labels;  ///< [Q], +1 or -1
  AttentionHead head;
  const double* v;  ///< [units, dx]; one unit unless the head is relu
  int64_t units;
  double lbd;  ///< of the head quad
  MarginLoss loss;
  double inputs;  ///< n
};

/// Of all queries at one W.
struct AttentionState {
  double risk = 0;
  std::vector<double> s, gamma, g;  ///< [nnz]
  std::vector<double> f;            ///< [Q]
  std::vector<int64_t> argmax;      ///< [Q], of s; ties: the first
};

/// L [nnz] of all queries at W [dx, dz].
void attention_logits(const AttentionModel& model, const double* W, std::vector<double>& logits);

/// Everything of AttentionState from the logits.
void evaluate_attention(const AttentionModel& model, const double* logits, AttentionState& state);

/// d risk / d W [dx, dz] from g and argmax.
void attention_gradient(const AttentionModel& model, const AttentionState& state, double* dW);

}  // namespace kktorch::csrc
