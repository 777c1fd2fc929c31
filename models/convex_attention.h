#pragma once
// Convex attention in factored form (arXiv 2211.11052, (11), (13), (30)), and softmax attention as
// the paper prints it (2), for comparison.
#include <torch/torch.h>

namespace kktorch {

/// f(X) = sum_j g_j(X) (w1_j' X w2_j) w3_j on X [N, n, d]; the result is [N, c]. Parameters w1
/// [h, n], rows in the simplex, w2 [h, d], w3 [h, c]. With `gates` = P > 0, head j has the gate
/// 1{u1' X u2 >= 0} of number j mod P; gate 0 is open everywhere, the others are Gaussian buffers.
/// forward throws c10::ValueError for a row of w1 outside of the simplex, or an id without a gate.
class ConvexAttentionImpl : public torch::nn::Cloneable<ConvexAttentionImpl> {
 public:
  ConvexAttentionImpl(int64_t tokens, int64_t width, int64_t outputs, int64_t heads,
                      int64_t gates = 0);

  void reset() override;

  torch::Tensor forward(const torch::Tensor& X);

  /// sum_j (|w2_j|^2 + |w3_j|_1^2) / 2, which beta multiplies in the objective.
  torch::Tensor penalty() const;

  /// Puts the rows of w1 back into the simplex, after an optimiser's step.
  void project();

  /// Scales w2_j and 1 / w3_j so that the penalty is least; predictions stay.
  void balance();

  int64_t tokens, width, outputs, heads, gates;
  torch::Tensor w1, w2, w3, u1, u2, gate_id;
};
TORCH_MODULE(ConvexAttention);

/// f(X) = sum_j w3_j W1_j X W2_j, W1_j row-stochastic: [N, n, d] -> [N, n, c]. Parameters W1
/// [h, n, n], W2 [h, d, c], w3 [h].
class ConvexAttentionSeqImpl : public torch::nn::Cloneable<ConvexAttentionSeqImpl> {
 public:
  ConvexAttentionSeqImpl(int64_t tokens, int64_t width, int64_t outputs, int64_t heads);

  void reset() override;
  torch::Tensor forward(const torch::Tensor& X);

  /// sum_j (|W2_j|_1^2 + w3_j^2) / 2, entrywise.
  torch::Tensor penalty() const;

  /// Puts the rows of W1 back into the simplex.
  void project();

  int64_t tokens, width, outputs, heads;
  torch::Tensor W1, W2, w3;
};
TORCH_MODULE(ConvexAttentionSeq);

/// f(X) = sum_h softmax(qk_scale x_r Q K' X') X V O, r = readout_row: [N, n, d] -> [N, outputs].
/// Parameters Q, K, V [h, d, dk], O [h, dk, outputs]; head_width = 0: dk = d.
class SoftmaxAttentionImpl : public torch::nn::Cloneable<SoftmaxAttentionImpl> {
 public:
  SoftmaxAttentionImpl(int64_t width, int64_t outputs, int64_t heads, int64_t head_width = 0,
                       double qk_scale = 1, int64_t readout_row = 0);

  void reset() override;

  /// @param key_padding_mask  bool [N, n], True = leave the key out.
  torch::Tensor forward(const torch::Tensor& X, const torch::Tensor& key_padding_mask = {});

  /// Attention of the readout row, [N, h, n].
  torch::Tensor maps(const torch::Tensor& X, const torch::Tensor& key_padding_mask = {}) const;

  int64_t width, outputs, heads, head_width;
  double qk_scale;
  int64_t readout_row;
  torch::Tensor Q, K, V, O;
};
TORCH_MODULE(SoftmaxAttention);

}  // namespace kktorch
