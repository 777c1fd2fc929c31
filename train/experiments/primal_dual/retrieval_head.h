#pragma once
// One attention head that retrieves: logits of N keys for one query.
#include <torch/nn/module.h>

#include <string>
#include <utility>
#include <vector>

namespace kktorch::primal_dual {

/// Variance floor of every normalisation.
inline constexpr double kRetrievalEps = 1e-5;

/// What is done to queries and keys before their product. Every method is Attention-BN of the
/// result: softmax attention is beta = 0 without the standard deviation.
struct RetrievalMethod {
  enum class Operands {
    kPlain,
    kKeysCentred,  ///< keys minus their mean: softmax does not see it
    kLayerNorm,    ///< of each query and key over its channels, with a gain per channel
    kRmsNorm       ///< likewise by the root mean square, without centring
  };

  std::string name;   ///< in file names
  std::string title;  ///< in tables
  Operands operands = Operands::kPlain;
  double beta = 0;
  bool use_std = false;
  bool learned_beta = false;
  bool query_bias = false;  ///< a learned vector added to the query

  /// Before training, a learned strength is at its initial value and a bias is zero: such a method
  /// is then one of the others.
  bool differs_only_by_training() const { return learned_beta || query_bias; }
};

/// Softmax attention first; the controls; Attention-BN.
const std::vector<RetrievalMethod>& retrieval_methods();

/// Learned maps of queries and keys [D, D], identities at first.
class RetrievalHead : public torch::nn::Module {
 public:
  RetrievalHead(RetrievalMethod method, int64_t width);

  /// By the formula of docs/attention_bn.md, differentiable also where a probability underflows.
  /// @param query [n, D]  @param keys [n, N, D]  @return [n, N]
  at::Tensor logits(const at::Tensor& query, const at::Tensor& keys) const;

  /// By the op: attention_bn with the identity as values. Shapes as in logits().
  at::Tensor probabilities(const at::Tensor& query, const at::Tensor& keys) const;

  double beta() const { return beta_.item<double>(); }

 private:
  std::pair<at::Tensor, at::Tensor> operands(const at::Tensor& query, const at::Tensor& keys) const;

  RetrievalMethod method_;
  at::Tensor query_map_, key_map_, query_bias_, query_gain_, key_gain_, beta_;
};

}  // namespace kktorch::primal_dual
