#pragma once
// One layer of softmax attention with a fixed head, the model of the attention SVM (Tarzanagh et
// al., arXiv 2308.16898, section 2): formulas in csrc/svm/attention_model.h.
#include <torch/torch.h>

#include <optional>
#include <string>

namespace kktorch {

struct AttSvmModelOptions {
  int64_t dx = 0;                 ///< width of the tokens; required
  int64_t dz = 0;                 ///< width of the queries; 0: dx
  int64_t m = 0;                  ///< W = K Q^T with m columns each; 0: the merged W itself
  std::string head = "linear";    ///< "linear", "relu" or "quad"
  int64_t units = 0;              ///< relu: rows of V; 0: dx
  double lbd = 0.0;               ///< quad: h(o) = v.o - lbd |o|^2
  std::string loss = "logistic";  ///< "logistic", "exponential" or "linear"
};

/// Tokens by sets: query q sees the entries row_ptr[q] ... row_ptr[q + 1] - 1, at least one; entry
/// k is row tok[k] of x, or row k without tok.
struct AttSvmSets {
  torch::Tensor x;        ///< [N, dx]
  torch::Tensor z;        ///< [Q, dz]
  torch::Tensor row_ptr;  ///< int64 [Q + 1]
  torch::Tensor tok;      ///< int64 [nnz], or undefined
};

/// The risk and its gradient in closed form, float64.
struct AttSvmGradient {
  double risk;
  torch::Tensor f;           ///< [Q], outputs of the model
  torch::Tensor s;           ///< [nnz], probabilities
  torch::Tensor score;       ///< [nnz], Y grad h(o).x
  torch::Tensor dlogits;     ///< [nnz], d risk / d logit; sums to 0 over every set
  torch::Tensor dW, dK, dQ;  ///< dW [dx, dz], or dK and dQ if m > 0
};

/// f_q = h(sum_t s_qt x_qt), s_q = softmax(x_qt^T W z_q), without any scale of the logits.
///
/// Parameters W [dx, dz], or K [dx, m] and Q [dz, m]; uniform in +-1/sqrt(width of their input).
/// Buffer v [dx], or V [units, dx] with the head relu; drawn normal with norm 1, and fixed.
/// @throws c10::ValueError  "AttSvmModel: expected <option>, but got <value>".
class AttSvmModelImpl : public torch::nn::Cloneable<AttSvmModelImpl> {
 public:
  explicit AttSvmModelImpl(const AttSvmModelOptions& options);

  void reset() override;

  /// f [Q], differentiable.
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& z,
                        const torch::Tensor& row_ptr, const torch::Tensor& tok = {});

  /// s [nnz].
  torch::Tensor probabilities(const AttSvmSets& sets) const;

  /// (1/inputs) sum_q l(labels_q f_q); inputs 0: Q. Labels [Q], +1 or -1.
  torch::Tensor risk(const AttSvmSets& sets, const torch::Tensor& labels, int64_t inputs = 0);

  /// The same and its gradient without autograd, which keeps its relative accuracy where the
  /// softmax is saturated. CPU; tensors of other dtypes than float64 are copied.
  /// @throws c10::Error  "AttSvmModel: expected labels +1 or -1, but got ...", and as attn_dual.
  AttSvmGradient analytic_grad(const AttSvmSets& sets, const torch::Tensor& labels,
                               int64_t inputs = 0) const;

  /// W, or K Q^T.
  torch::Tensor merged() const { return options.m > 0 ? torch::matmul(K, Q.t()) : W; }

  void pretty_print(std::ostream& stream) const override;

  AttSvmModelOptions options;
  torch::Tensor W, K, Q, v;
};
TORCH_MODULE(AttSvmModel);

}  // namespace kktorch
