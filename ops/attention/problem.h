#pragma once
// One attention problem, and the back ends that solve it. Every attention op of this library checks
// its arguments, states its problem here, and leaves the computing to a back end; nothing else
// knows how attention is computed.
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string_view>

namespace kktorch::detail {

/// The arguments that attention ops share, as the dispatcher hands them over.
struct AttentionArguments {
  const at::Tensor &query, &key, &value;
  const std::optional<at::Tensor>&beta, &key_padding_mask, &attn_mask, &key_weight;
  double eps, dropout_p;
  bool enable_gqa;
};

/// Shapes, dtypes, devices and ranges; raises "<op>: expected <what>, but got <values>". Reads no
/// tensor's values.
void check_attention(std::string_view op, const AttentionArguments& arguments);

/// What the optional arguments of an attention op come to.
struct AttentionDefaults {
  std::string_view stats;    // "global", "prefix" or "support"
  c10::SymInt query_offset;  // 0 without causality
  double scale;
};

/// check_attention, and the arguments that public ops leave open.
AttentionDefaults settle_attention(std::string_view op, const AttentionArguments& arguments,
                                   double beta_value, std::string_view stats, bool is_causal,
                                   const std::optional<c10::SymInt>& query_offset,
                                   std::optional<double> scale);

/// A checked and resolved attention problem. B batch, H query heads, Hk key heads, M queries, N
/// keys, D width, Dv value width; `acc` is float64 for float64 inputs, float32 otherwise.
struct AttentionProblem {
  at::Tensor query;       // [B, H, M, D], channels contiguous
  at::Tensor key;         // [B, Hk, N, D], channels contiguous
  at::Tensor value;       // [B, Hk, N, Dv], channels contiguous
  at::Tensor beta;        // [H], acc
  at::Tensor key_weight;  // [B, N], acc, 0 = ignored; undefined where every key weighs 1
  at::Tensor
      attn_mask;  // bool or floating, [M, N] or [B|1, H|1, M, N]; undefined where there is none
  double eps, scale, dropout_p;
  bool use_std;
  bool plain;      // softmax attention on query and key as they are: beta 0, no division
  bool prefix;     // statistics of the keys up to the query's position; otherwise of all keys
  bool is_causal;  // query i sees keys j <= query_offset + i
  int64_t query_offset;

  int64_t B() const { return query.size(0); }
  int64_t H() const { return query.size(1); }
  int64_t Hk() const { return key.size(1); }
  int64_t M() const { return query.size(2); }
  int64_t N() const { return key.size(2); }
  int64_t D() const { return query.size(3); }
  int64_t Dv() const { return value.size(3); }
  at::ScalarType acc() const { return beta.scalar_type(); }
};

/// What a forward pass leaves for its backward pass. Only `out` is for callers.
struct AttentionResult {
  at::Tensor out;         // [B, H, M, Dv], stored (B, M, H, Dv)
  at::Tensor logsumexp;   // [B, H, M], acc, stored (B, M, H)
  at::Tensor statistics;  // [B, Hk, 3, D], acc: x0, m, r (m and r are 0 with prefix statistics)
  at::Tensor rng_state;   // empty, or the state that reproduces the dropout mask
};

struct AttentionGradients {
  at::Tensor query, key, value;  // shapes and dtype of the inputs, stored (B, length, H, width)
  at::Tensor beta;               // [H], acc
};

struct AttentionBackend {
  const char* name;
  AttentionResult (*forward)(const AttentionProblem&);
  AttentionGradients (*backward)(const AttentionProblem&, const AttentionResult&,
                                 const at::Tensor& grad_out);
};

/// n_j in the dtype acc, [B, N]: key_weight, 0 where padded; undefined where every key weighs 1.
at::Tensor total_key_weight(std::string_view op, const AttentionArguments& arguments);

/// Nothing to compute, or no keys to attend to: the result is 0, without a back end.
bool is_trivial(const AttentionProblem& problem);

/// The back end for a problem that is not empty: the core where it takes the problem, else the
/// stock one, or what KKTORCH_ATTENTION forces (backends.h).
const AttentionBackend& attention_backend(const AttentionProblem& problem);

/// float16, bfloat16, float32 or float64.
bool is_supported_dtype(at::ScalarType type);

/// [B, H, L, width] stored as (B, L, H, width): the layout of every attention output and gradient.
at::Tensor empty_heads_last(c10::SymIntArrayRef sizes, const at::TensorOptions& options);

/// `t` in `dtype`, stored (B, L, H, width); itself if it is.
at::Tensor heads_last(const at::Tensor& t, at::ScalarType dtype);

/// `tensor` itself if its channels are contiguous, else a contiguous copy.
at::Tensor channels_contiguous(const at::Tensor& tensor);

}  // namespace kktorch::detail
