#pragma once
// Softmax attention in a classifier with a control on its queries and keys (query_key_control.h).
#include <memory>
#include <vector>

#include "models/attention_bnsh.h"
#include "train/experiments/primal_dual/query_key_control.h"

namespace kktorch::primal_dual {

/// AttentionBNSH of variant softmax whose query and key heads go through a control, a submodule
/// "control" with a query bias per head and gains that the heads share.
class ControlledAttention : public AttentionBNSHImpl {
 public:
  /// With the options and the values of the parameters of `original`.
  ControlledAttention(const AttentionBNSHImpl& original, QueryKeyOptions control);

 protected:
  std::vector<at::Tensor> project(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value) const override;

 private:
  std::shared_ptr<QueryKeyControl> control_;
};

/// Replaces the attention of every encoder layer inside `model`. The mean of the keys is that over
/// all positions, padded ones included: what is subtracted from every key does not matter.
void add_control(torch::nn::Module& model, QueryKeyOptions control);

}  // namespace kktorch::primal_dual
