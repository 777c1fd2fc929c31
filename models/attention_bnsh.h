#pragma once
// Multi-head attention whose heads are softmax attention, Attention-BN, Attention-SH, both, or the
// linear counterparts of these (ops/attention_bn.h, ops/attention_sh.h, ops/linear_attention.h).
#include <torch/torch.h>

#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "models/kv_cache.h"
#include "models/token_conv.h"

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
  double dropout = 0.0;  ///< on the attention probabilities, which linear variants do not have; > 0
                         ///< leaves the fused path on the CPU
  bool batch_first = false;         ///< [B, L, width] instead of [L, B, width]
  std::string variant = "bn";       ///< "softmax", "bn" (keys normalised), "sh" (keys and values
                                    ///< pooled), "bnsh" (both), "linear", "linear_bn", "linear_sh"
                                    ///< or "linear_bnsh"
  std::string beta_mode = "fixed";  ///< bn: beta is the number beta_init ("fixed"), or learned, one
                                    ///< for all heads ("scalar") or one a head ("per_head"; a key
                                    ///< head for linear variants)
  double beta_init = 1.0;           ///< bn: value, or initial value, of beta
  bool use_std = true;              ///< bn: divide the keys by their standard deviation
  double eps = 1e-5;                ///< bn: variance floor
  bool stats_mask = true;  ///< false: key_padding_mask is ignored, padded keys enter statistics and
                           ///< softmax like any other (as in code that masks nothing)
  std::vector<int64_t> scales = {};  ///< sh: window of every key head, 1 or Hk numbers; empty:
                                     ///< default_scales(Hk)
  std::string tail = "ceil";     ///< sh: the last window may be short ("ceil") or is left out if it
                                 ///< is ("drop")
  bool count_weighting = false;  ///< sh: a window weighs as much as it has tokens, not 1
  int64_t num_special = 0;       ///< first tokens that are neither pooled nor convolved, as [CLS]
  std::string conv = "none";     ///< depth-wise convolution of queries and keys over the tokens,
                                 ///< see TokenConv: "none", "1d" or "2d"
  int64_t conv_columns = 0;      ///< 2d: width of the grid of tokens; required there

  bool is_linear() const { return variant.starts_with("linear"); }
  bool normalises() const { return variant.find("bn") != std::string::npos; }
  bool pools() const { return variant.ends_with("sh"); }
};

/// Window of every head: 1 for one head, {1, 2} for two to seven, {1, 2, 4, 8} from eight on, each
/// for an equal share of neighbouring heads.
std::vector<int64_t> default_scales(int64_t heads);

/// What the heads did in a forward pass, B first whatever the layout of the layer.
struct HeadRecord {
  torch::Tensor outputs;      ///< [B, H, L, Dv], before the output projection
  torch::Tensor weights;      ///< [B, H, L, S], see need_weights of forward()
  torch::Tensor key_padding;  ///< bool [B, S], True = ignored; undefined if no key is
};

/// Multi-head attention with the parameters, masks and layouts of torch.nn.MultiheadAttention.
///
/// Parameters: in_proj_weight [E + Hk D + Hk Dv, E], or q_proj_weight, k_proj_weight, v_proj_weight
/// if kdim or vdim differs from embed_dim E; in_proj_bias; out_proj.weight [E, H Dv],
/// out_proj.bias; beta [], [H] or, in linear variants, [Hk] if it is learned (which wants no weight
/// decay); conv_q.weight and conv_k.weight with a convolution. With equal widths the state dict is
/// that of nn.MultiheadAttention, and so are the initial values, drawn in the same order: a seed
/// gives the same layer in both. The variant "softmax", "bn" with beta 0 and use_std = false, and
/// "sh" with scales 1 compute the same function.
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
  ///     needs it finite. A convolution takes it for the queries, too, if query is key.
  /// @param need_weights  also return the probabilities (materialised, O(L S)). What a query gives
  ///     to a window is spread evenly over its tokens.
  /// @param attn_mask  [L, S] or [B H, L, S] ([H, L, S] without a batch), bool (True = forbidden)
  /// or
  ///     floating (added to the scaled logits; not where heads pool). Not for linear variants.
  /// @param average_attn_weights  mean of the weights over the heads.
  /// @param is_causal  query i sees keys 0..i, L = S; for bn also in the statistics. Not for
  ///     linear_sh, linear_bnsh and the 2d convolution.
  /// @return (output, laid out like query; weights [B, L, S], or [B, H, L, S] per head, without B
  /// for
  ///     unbatched input; undefined unless asked for).
  /// @throws c10::Error  "AttentionBNSH: expected <what>, but got <values>".
  std::tuple<torch::Tensor, torch::Tensor> forward(
      const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
      const torch::Tensor& key_padding_mask = {}, bool need_weights = false,
      const torch::Tensor& attn_mask = {}, bool average_attn_weights = true,
      bool is_causal = false);

  /// An empty cache for `batch` sequences of up to `capacity` tokens, in the dtype and on the
  /// device of the layer.
  KVCache make_cache(int64_t batch, int64_t capacity) const;

  /// The next T >= 1 tokens of every sequence: the rows that forward(x, x, x, is_causal) of all
  /// tokens up to now gives for them. No gradients, no dropout; variants softmax, bn, sh and bnsh
  /// without convolution.
  ///
  /// @param x_new  [T, B, E], or [B, T, E] with batch_first.
  /// @param cache  of make_cache(); the tokens are added.
  /// @param valid  number of tokens of x_new that each sequence has, 0 ... T, the rest is padding
  ///     at its end and gives rows to be dropped; empty: T for all.
  /// @return       laid out like x_new.
  /// @throws c10::Error  "AttentionBNSH: expected <what>, but got <values>", "KVCache: expected
  ///     capacity >= {need}, but got {C}".
  torch::Tensor decode(const torch::Tensor& x_new, KVCache& cache,
                       const std::vector<int64_t>& valid = {});

  void pretty_print(std::ostream& stream) const override;

  int64_t num_kv_heads() const { return options.num_kv_heads.value_or(options.num_heads); }
  int64_t queries_per_key() const { return options.num_heads / num_kv_heads(); }
  bool is_gqa() const { return queries_per_key() > 1; }
  int64_t head_dim() const { return options.embed_dim / options.num_heads; }
  int64_t value_head_dim() const { return options.value_head_dim.value_or(head_dim()); }
  /// Window of every key head; 1 where no head pools.
  std::vector<int64_t> scales() const;
  /// Rows of the query, key and value projections.
  std::vector<int64_t> projection_rows() const;
  /// Weight and bias (or undefined) of the query (0), key (1) or value (2) projection.
  std::pair<torch::Tensor, torch::Tensor> projection(size_t i) const;
  /// The beta_value of the ops: they want 1 next to a parameter.
  double beta_value() const {
    if (!options.normalises()) return 0.0;
    return beta.defined() ? 1.0 : options.beta_init;
  }

  /// If set, called by every forward pass, which then costs what need_weights costs.
  std::function<void(const HeadRecord&)> observer;

  AttentionBNSHOptions options;
  torch::Tensor in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, in_proj_bias;
  torch::Tensor beta;
  TokenConv conv_q{nullptr}, conv_k{nullptr};
  torch::nn::Linear out_proj{nullptr};

 protected:
  /// Query, key and value heads [B, heads, length, width] of the inputs [B, length, width].
  /// Virtual, so that a variation of the layer can change them before they are compared; heads that
  /// pool before their projections do not come by here.
  virtual std::vector<torch::Tensor> project(const torch::Tensor& query, const torch::Tensor& key,
                                             const torch::Tensor& value) const;
};
TORCH_MODULE(AttentionBNSH);

}  // namespace kktorch
