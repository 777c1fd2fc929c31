#pragma once
// The pieces of the executable specifications (attention_bn_ref, attention_sh_ref): differentiable
// ATen ops that materialise the probabilities.
//
// Each row i has weights w_ij of the keys in its statistics; one formula serves all modes, because
// weights shared by all rows are a single row that broadcasts (R = 1), and per-row statistics are R
// = M rows.
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>

namespace kktorch::detail {

struct RowStatistics {
  at::Tensor shift;  // x0, [B, H, 1, D]
  at::Tensor mean;   // of k - x0, [B, H, R, D]
  at::Tensor rstd;   // [B, H, R, D]
};

/// One softmax attention, all tensors in the accumulation type.
struct ReferenceAttention {
  at::Tensor query;         // [B, H, M, D]
  at::Tensor keys, values;  // [B, H, N, D], [B, H, N, Dv]; what a weight of 0 hides is finite
  at::Tensor weights;       // n_j, [B, 1, 1, N]
  at::Tensor mask;          // added to the logits, or undefined
  RowStatistics statistics;
  at::Tensor beta;  // [1, H|1, 1, 1]
  double scale, dropout_p;
  bool literal;  // evaluate L as it stands, not folded
};

/// [B, H, M, Dv] in the accumulation type; a row that sees no key is 0.
at::Tensor reference_attention(const ReferenceAttention& attention);

/// `t` [B, Hk, ...] repeated to H heads.
at::Tensor repeat_heads(const at::Tensor& t, const c10::SymInt& H);

/// n_j of the keys k [B, Hk, N, D], in the dtype of k: [B, 1, 1, N].
at::Tensor weights_of_keys(const at::Tensor& k, const std::optional<at::Tensor>& key_padding_mask,
                           const std::optional<at::Tensor>& key_weight);

/// `t` [B, Hk, N, width] with 0 where n_j = 0: padding may hold NaN, so it is selected, never
/// multiplied.
at::Tensor keep_valid(const at::Tensor& t, const at::Tensor& weights);

/// The first valid key, a constant shift (detached on purpose): [B, Hk, 1, D].
at::Tensor first_valid_key(const at::Tensor& k, const at::Tensor& weights);

/// Statistics of x = k - x0 [B, H, N, D] under weights w, broadcastable to [B, H, R, N].
RowStatistics row_statistics(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& w,
                             double eps, bool use_std);

/// beta as [1, H|1, 1, 1] in the dtype of `like`.
at::Tensor reference_beta(const std::optional<at::Tensor>& beta, double beta_value,
                          const at::Tensor& like);

/// 0 where `allowed`, -inf elsewhere, in the dtype of `like`.
at::Tensor forbid_unless(const at::Tensor& allowed, const at::Tensor& like);

/// True where key j of N is not in the future of query i of M: [M, N].
at::Tensor causal_visibility(const c10::SymInt& M, const c10::SymInt& N,
                             const c10::SymInt& query_offset, const at::TensorOptions& options);

/// `t` [B, H, M, Dv] stored (B, M, H, Dv), like the output of the fused path.
at::Tensor stored_heads_last(const at::Tensor& t);

}  // namespace kktorch::detail
