#pragma once
// The margin tracker (ops/svm/margin_tracker.h) on the heads of a trained attention layer:
//
//     LayerTracker tracker(layer);                    // then tracker.forward(x, x, x) for the
//     layer
//     ... loss.backward();  auto records = tracker.step();               // a record per head
#include <memory>
#include <vector>

#include "models/attention_bnsh.h"
#include "ops/svm/margin_tracker.h"

namespace kktorch {

struct LayerTrackerOptions {
  bool nuclear = false;
  int64_t solve_after = 0;  ///< 1: the SVMs of every head are solved in the next step after it
  double solve_seconds = 60;
};

/// Watches the last forward() of a layer with bilinear logits (variant "softmax", without
/// convolution and dropout). The tokens of an inner layer change with every step, so that every
/// step starts anew: the multipliers are those of this step. Biases of queries are taken in by
/// z' = [z; 1]; the bias of the keys adds one number to all logits of a query. Keys that are masked
/// out leave the sets; queries that see no key are left out.
class LayerTracker {
 public:
  /// @throws c10::Error  "margin_tracker: expected bilinear logits, but got <what>".
  explicit LayerTracker(AttentionBNSH layer, LayerTrackerOptions options = {});

  /// The output of the layer's forward(), at the cost of its need_weights.
  torch::Tensor forward(const torch::Tensor& query, const torch::Tensor& key,
                        const torch::Tensor& value, const torch::Tensor& key_padding_mask = {},
                        const torch::Tensor& attn_mask = {}, bool is_causal = false);

  /// Records of the heads for the last forward(); after backward() with upper bounds.
  /// @throws c10::Error  without a forward pass, of logits with an additive mask or a mask for
  ///     every head, and as MarginTracker.
  std::vector<MarginRecord> step(double loss = kUndefinedField, double loss_star = kUndefinedField);

 private:
  struct Pass;

  AttentionBNSH layer_;
  LayerTrackerOptions options_;
  std::shared_ptr<Pass> pass_;  // of the last forward(); null: there was none
};

}  // namespace kktorch
