#pragma once
// One attention head that retrieves: logits of N keys for one query.
#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "train/experiments/primal_dual/query_key_control.h"

namespace kktorch::primal_dual {

/// What is done to queries and keys before their product. Every method is Attention-BN of what the
/// control leaves: softmax attention is beta = 0 without the standard deviation.
struct RetrievalMethod {
  std::string name;   ///< in file names
  std::string title;  ///< in tables
  QueryKeyOptions control = {};
  double beta = 0;
  bool use_std = false;
  bool learned_beta = false;

  /// Before training, a learned strength is at its initial value and a bias is zero: such a method
  /// is then one of the others.
  bool differs_only_by_training() const { return learned_beta || control.query_bias; }
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
  at::Tensor query_map_, key_map_, beta_;
  std::shared_ptr<QueryKeyControl> control_;
};

}  // namespace kktorch::primal_dual
