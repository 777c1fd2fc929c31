#pragma once
// Between solutions of the convex programs and the heads of a network that attains them
// (arXiv 2211.11052, Proposition 1 in the corrected form of docs/convex_attention.md).
//
//     head j: w1 in the simplex [n], w2 [d], w3 [c], gate_id      Z[p,l,k,:] = sum w1_k w3_l w2
#include <ATen/core/Tensor.h>

#include <optional>

namespace kktorch {

struct Heads {
  at::Tensor w1, w2, w3;  ///< [h, n], [h, d], [h, c]; of sequences [h, n, n], [h, d, c], [h]
  at::Tensor gate_id;     ///< int64 [h]; of sequences undefined
};

/// A head for each active group of Z [P, c, n, d], in lexicographic order: w1 = e_k,
/// w2 = z / sqrt(|z|), w3 = sqrt(|z|) e_l.
/// @param h  number of heads, 0: as many as there are active groups; more are padded with w2 = 0,
/// w3 = 0.
Heads recover_heads(const at::Tensor& Z, int64_t h = 0);

/// The effective Z [P, c, n, d] of heads; P = 0: the largest gate + 1.
at::Tensor heads_to_z(const Heads& heads, int64_t P = 0);

/// Caratheodory: at most N c active groups with the same predictions on X [N, n, d] and a penalty
/// that is not larger. For at most 5e7 entries (active groups x N x c).
at::Tensor reduce_heads(const at::Tensor& Z, const at::Tensor& X,
                        const std::optional<at::Tensor>& gate = {});

/// The same for the blocks [2, c, d, n, n] of a sequence solution: W1 = C / t, row-stochastic,
/// W2 = sqrt(t) E_ql, w3 = +-sqrt(t).
Heads recover_sequence_heads(const at::Tensor& C);
at::Tensor sequence_heads_to_z(const Heads& heads);

}  // namespace kktorch
