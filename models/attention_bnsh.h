#pragma once
// Multi-head attention whose heads are softmax attention or Attention-BN (ops/attention_bn.h).
#include <torch/torch.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace kktorch {

/// Options of AttentionBNSH. An empty optional is derived from the other options.
struct AttentionBNSHOptions {
  int64_t embed_dim = 0;  ///< width of queries and outputs; required
  int64_t num_heads = 1;  ///< query heads H; embed_dim / H is the width D of a head
  std::optional<int64_t> num_kv_heads = {};    ///< key/value heads Hk, a divisor of H; default H
  std::optional<int64_t> kdim = {};            ///< width of the keys' input; default embed_dim
  std::optional<int64_t> vdim = {};            ///< width of the values' input; default embed_dim
  std::optional<int64_t> value_head_dim = {};  ///< width Dv of a head's values; default D
  bool bias = true;                            ///< of all projections
  double dropout = 0.0;  ///< on the attention probabilities; > 0 leaves the fused path on the CPU
  bool batch_first = false;         ///< [B, L, width] instead of [L, B, width]
  std::string variant = "bn";       ///< "softmax" or "bn"
  std::string beta_mode = "fixed";  ///< bn: beta is the number beta_init ("fixed"), or learned, one
                                    ///< for all heads ("scalar") or one a head ("per_head")
  double beta_init = 1.0;           ///< bn: value, or initial value, of beta
  bool use_std = true;              ///< bn: divide the keys by their standard deviation
  double eps = 1e-5;                ///< bn: variance floor
  bool stats_mask = true;  ///< false: key_padding_mask is ignored, padded keys enter statistics and
                           ///< softmax like any other (as in code that masks nothing)
};

/// Multi-head attention with the parameters, masks and layouts of torch.nn.MultiheadAttention.
///
/// Parameters: in_proj_weight [E + Hk D + Hk Dv, E], or q_proj_weight, k_proj_weight, v_proj_weight
/// if kdim or vdim differs from embed_dim E; in_proj_bias; out_proj.weight [E, H Dv],
/// out_proj.bias; beta [] or [H] if it is learned (which wants no weight decay). With equal widths
/// the state dict is that of nn.MultiheadAttention, and so are the initial values, drawn in the
/// same order: a seed gives the same layer in both. The variant "softmax", and "bn" with beta 0 and
/// use_std = false, compute the same function.
///
/// It differs from nn.MultiheadAttention in that need_weights defaults to false, is_causal is
/// binding and not a hint, the returned weights carry no dropout, and a query that sees no key
/// gives 0 (before the output projection), not NaN.
/// @throws c10::ValueError  "AttentionBNSH: expected <option>, but got <value>".
class AttentionBNSHImpl : public torch::nn::Cloneable<AttentionBNSHImpl> {
 public:
  explicit AttentionBNSHImpl(const AttentionBNSHOptions& options);
  AttentionBNSHImpl(int64_t embed_dim, int64_t num_heads)
      : AttentionBNSHImpl(AttentionBNSHOptions{.embed_dim = embed_dim, .num_heads = num_heads}) {}

  void reset() override;

  /// B batch, L queries, S keys, E embed_dim, H heads.
  ///
  /// @param query  [L, B, E], or [B, L, E] with batch_first, or [L, E] without a batch.
  /// @param key, value  [S, B, kdim] and [S, B, vdim], laid out like query.
  /// @param key_padding_mask  bool [B, S] ([S] without a batch), True = ignore the key. What stands
  ///     in a padded key does not reach the output, NaN included; the gradient of the projections
  ///     needs it finite.
  /// @param need_weights  also return the probabilities (materialised, O(L S)).
  /// @param attn_mask  [L, S] or [B H, L, S] ([H, L, S] without a batch), bool (True = forbidden)
  /// or
  ///     floating (added to the scaled logits).
  /// @param average_attn_weights  mean of the weights over the heads.
  /// @param is_causal  query i sees keys 0..i, L = S; for bn also in the statistics.
  /// @return (output, laid out like query; weights [B, L, S], or [B, H, L, S] per head, without B
  /// for
  ///     unbatched input; undefined unless asked for).
  /// @throws c10::Error  "AttentionBNSH: expected <what>, but got <values>".
  std::tuple<torch::Tensor, torch::Tensor> forward(
      const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
      const torch::Tensor& key_padding_mask = {}, bool need_weights = false,
      const torch::Tensor& attn_mask = {}, bool average_attn_weights = true,
      bool is_causal = false);

  void pretty_print(std::ostream& stream) const override;

  int64_t num_kv_heads() const { return options.num_kv_heads.value_or(options.num_heads); }
  int64_t head_dim() const { return options.embed_dim / options.num_heads; }
  int64_t value_head_dim() const { return options.value_head_dim.value_or(head_dim()); }
  /// Rows of the query, key and value projections.
  std::vector<int64_t> projection_rows() const;

  AttentionBNSHOptions options;
  torch::Tensor in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, in_proj_bias;
  torch::Tensor beta;
  torch::nn::Linear out_proj{nullptr};

 private:
  struct Masks;  // in the convention of the ops

  std::vector<torch::Tensor> project(const torch::Tensor& query, const torch::Tensor& key,
                                     const torch::Tensor& value, bool self_attention) const;
  torch::Tensor attend(const torch::Tensor& query, const torch::Tensor& key,
                       const torch::Tensor& value, const Masks& masks, double dropout) const;
};
TORCH_MODULE(AttentionBNSH);

}  // namespace kktorch
