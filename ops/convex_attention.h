#pragma once
// Convex attention in factored and in effective form (arXiv 2211.11052, (8), (11), (13), (30)).
//
//     convex_attention      A_i = sum_j g_ij (w1_j' X_i w2_j) w3_j           w1_j in the simplex
//     convex_attention_seq  A_i = sum_j w3_j W1_j X_i W2_j                   W1_j row-stochastic
//     convex_predict        A_il = sum_p g_ip <Z[p,l], X_i>
//
// The weights of attention are shared by all samples. That w1 lies in the simplex is not checked
// here: modules and certificates do. Gates are constants. Compositions of ATen ops on every device;
// halves are computed in float32.
#include <ATen/core/Tensor.h>

#include <optional>

namespace kktorch {

/// @param X        [N, n, d].  @param w1  [h, n].  @param w2  [h, d].  @param w3  [h, c].
/// @param gate     [N, P], entries 0 or 1.
/// @param gate_id  int64 [h], head j uses gate[:, gate_id[j]]; without it P = h.
/// @return         [N, c].
at::Tensor convex_attention(const at::Tensor& X, const at::Tensor& w1, const at::Tensor& w2,
                            const at::Tensor& w3, const std::optional<at::Tensor>& gate = {},
                            const std::optional<at::Tensor>& gate_id = {});

/// @param X  [N, n, d].  @param W1  [h, n, n].  @param W2  [h, d, c].  @param w3  [h].
/// @return   [N, n, c].
at::Tensor convex_attention_seq(const at::Tensor& X, const at::Tensor& W1, const at::Tensor& W2,
                                const at::Tensor& w3);

/// @param X  [N, n, d].  @param Z  [P, c, n, d].  @param gate  [N, P], or none with P = 1.
/// @return   [N, c].
at::Tensor convex_predict(const at::Tensor& X, const at::Tensor& Z,
                          const std::optional<at::Tensor>& gate = {});

}  // namespace kktorch
