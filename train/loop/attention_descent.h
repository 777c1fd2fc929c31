#pragma once
// Normalised gradient descent of the attention model, by the closed form of the gradient
// (csrc/svm/attention_model.h), float64 and single-threaded:
//
//     W <- W - lr dW / (|dW|_F + eps)
//
// or K and Q likewise, normalised separately, with the regulariser eps (|K|_F^2 + |Q|_F^2).
#include <cstdint>
#include <functional>
#include <vector>

#include "csrc/svm/attention_model.h"

namespace kktorch {

/// Machine precision of float64: below it, steps shrink with the gradient.
inline constexpr double kNgdEps = 2.220446049250313e-16;

/// parameters -= lr gradient / (|gradient| + eps). @return lr / (|gradient| + eps), 0 for a zero
/// gradient and eps = 0.
double ngd_update(std::vector<double>& parameters, const std::vector<double>& gradient, double lr,
                  double eps);

struct AttentionDescentOptions {
  double lr = 0.1;
  double eps = kNgdEps;
  int64_t m = 0;  ///< columns of K and Q; 0: the merged W
};

/// One run. What it says belongs to iteration(), to the weights after so many updates.
class AttentionDescent {
 public:
  /// @param model  views data that must outlive the run.
  /// @param weights  W [dx dz], or K [dx m] and then Q [dz m].
  /// @param iteration  that the weights belong to, where a run is continued.
  AttentionDescent(const csrc::AttentionModel& model, const AttentionDescentOptions& options,
                   std::vector<double> weights, int64_t iteration = 0);

  /// Shows every iteration from this one to `last` to `observe` before it makes the next update.
  /// @return false where `observe` returned false and so ended it.
  bool run(int64_t last, const std::function<bool(const AttentionDescent&)>& observe);

  void step();

  int64_t iteration() const { return iteration_; }
  const std::vector<double>& W() const { return W_; }  ///< or K Q^T
  const std::vector<double>& K() const { return K_; }
  const std::vector<double>& Q() const { return Q_; }
  const csrc::AttentionState& state() const { return state_; }
  /// Sum over the updates of step times d risk / d logits, [nnz]: without K and Q,
  /// W_k = W_0 + A*(path), and always its positive part is a set of multipliers.
  const std::vector<double>& path() const { return path_; }
  double gradient_norm() const { return gradient_norm_; }  ///< |dW|_F of the last step()
  bool underflow() const { return gradient_norm_ == 0; }

  /// Mean, and smallest, over the queries of max_t s_t.
  double mean_probability() const;
  double least_probability() const;

 private:
  void evaluate();
  void step_factors();

  csrc::AttentionModel model_;
  AttentionDescentOptions options_;
  std::vector<double> W_, K_, Q_, dW_, logits_, path_;
  csrc::AttentionState state_;
  double gradient_norm_ = 1;
  int64_t iteration_;
};

}  // namespace kktorch
