#include "ops/convex_heads.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensordot.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "ops/convex/inputs.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void check_z(std::string_view function, const Tensor& Z) {
  TORCH_CHECK(Z.dim() == 4 && (Z.scalar_type() == at::kFloat || Z.scalar_type() == at::kDouble),
              function, ": expected Z float32 or float64 of shape [P, c, n, d], but got ",
              Z.scalar_type(), " ", Z.sizes());
}

void check_heads(std::string_view function, const Heads& heads) {
  const auto h = heads.w1.size(0);
  TORCH_CHECK(heads.w1.dim() == 2 && heads.w2.dim() == 2 && heads.w3.dim() == 2 &&
                  heads.w2.size(0) == h && heads.w3.size(0) == h,
              function, ": expected w1 [h, n], w2 [h, d], w3 [h, c], but got ", heads.w1.sizes(),
              ", ", heads.w2.sizes(), ", ", heads.w3.sizes());
}

}  // namespace

Heads recover_heads(const Tensor& Z, int64_t h) {
  check_z("recover_heads", Z);
  const auto norm = Z.norm(2, {-1});
  const auto active = norm.nonzero();
  const int64_t K = active.size(0);
  TORCH_CHECK_VALUE(h == 0 || h >= K, "recover_heads: expected h >= ", K,
                    " (active groups), but got ", h, "; call reduce_heads first or raise h");
  const int64_t count = h > 0 ? h : K;
  const auto options = Z.options();
  Heads heads = {at::zeros({count, Z.size(2)}, options), at::zeros({count, Z.size(3)}, options),
                 at::zeros({count, Z.size(1)}, options),
                 at::zeros({count}, options.dtype(at::kLong))};
  heads.w1.select(1, 0).fill_(1);
  if (K == 0) return heads;
  const auto p = active.select(1, 0), l = active.select(1, 1), k = active.select(1, 2);
  const auto z = Z.index({p, l, k}), root = norm.index({p, l, k}).sqrt();
  auto w1 = heads.w1.narrow(0, 0, K), w3 = heads.w3.narrow(0, 0, K);
  w1.zero_().scatter_(1, k.unsqueeze(1), 1);
  heads.w2.narrow(0, 0, K).copy_(z / root.unsqueeze(1));
  w3.scatter_(1, l.unsqueeze(1), root.unsqueeze(1));
  heads.gate_id.narrow(0, 0, K).copy_(p);
  return heads;
}

Tensor heads_to_z(const Heads& heads, int64_t P) {
  check_heads("heads_to_z", heads);
  const int64_t n = heads.w1.size(1), d = heads.w2.size(1), c = heads.w3.size(1);
  const int64_t gates = heads.gate_id.numel() ? heads.gate_id.max().item<int64_t>() + 1 : 1;
  detail::check_gate_id("heads_to_z", heads.gate_id, heads.w1.size(0), P > 0 ? P : gates);
  auto Z = at::zeros({P > 0 ? P : gates, c, n, d}, heads.w1.options());
  for (int64_t p = 0; p < gates; ++p) {
    const auto own = heads.gate_id.eq(p).nonzero().squeeze(1);
    if (own.numel() == 0) continue;
    const auto w1 = heads.w1.index_select(0, own), w2 = heads.w2.index_select(0, own);
    const auto outer = (w1.unsqueeze(2) * w2.unsqueeze(1)).flatten(1);
    Z[p].copy_(heads.w3.index_select(0, own).t().matmul(outer).view({c, n, d}));
  }
  return Z;
}

namespace {

/// Weights t' >= 0 with columns t' = columns t, as few as the rank, sum t' <= sum t.
Tensor reduced_weights(const Tensor& columns, Tensor t) {
  auto kept = t.gt(0).nonzero().squeeze(1);
  while (kept.numel() > 0) {
    const auto own = columns.index_select(1, kept);
    // Of a tall matrix, R has the same singular values and right vectors.
    const bool is_tall = own.size(0) > own.size(1);
    const auto [U, S, Vh] = at::linalg_svd(is_tall ? std::get<1>(at::linalg_qr(own, "r")) : own);
    const int64_t rank = S.gt(1e-10 * S.max()).sum().item<int64_t>();
    if (rank >= kept.numel()) break;
    auto v = Vh.select(0, Vh.size(0) - 1);
    if (v.sum().item<double>() > 0) v = -v;
    const auto weights = t.index_select(0, kept);
    const auto falls = v.lt(0);
    if (!falls.any().item<bool>()) break;
    const auto steps = at::where(falls, weights / -v, std::numeric_limits<double>::infinity());
    const int64_t drop = steps.argmin().item<int64_t>();
    auto moved = (weights + steps[drop] * v).clamp_min(0);
    moved[drop] = 0;
    t.index_copy_(0, kept, moved);
    kept = t.gt(0).nonzero().squeeze(1);
  }
  return t;
}

}  // namespace

Tensor reduce_heads(const Tensor& Z, const Tensor& X, const OptionalTensor& gate) {
  check_z("reduce_heads", Z);
  detail::check_features("reduce_heads", X, 0);
  detail::check_gate("reduce_heads", X, gate);
  TORCH_CHECK(
      X.size(1) == Z.size(2) && X.size(2) == Z.size(3) && Z.size(0) == (gate ? gate->size(1) : 1),
      "reduce_heads: expected X [N, n, d] and gate [N, P] for Z ", Z.sizes(), ", but got ",
      X.sizes());
  const auto norm = Z.to(at::kDouble).norm(2, {-1});
  const int64_t K = norm.gt(0).sum().item<int64_t>(), N = X.size(0), c = Z.size(1);
  TORCH_CHECK_VALUE(static_cast<double>(K) * static_cast<double>(N * c) <= 5e7,
                    "reduce_heads: expected at most 5e7 entries (active groups x N x c), but got ",
                    K, " x ", N, " x ", c);
  auto result = Z.clone();
  // Groups of different outputs share no prediction: every output is a problem of its own.
  for (int64_t l = 0; l < c; ++l) {
    const auto active = norm.select(1, l).nonzero();
    if (active.size(0) == 0) continue;
    std::vector<Tensor> columns, weights;
    for (int64_t a = 0; a < active.size(0); ++a) {
      const int64_t p = active[a][0].item<int64_t>(), k = active[a][1].item<int64_t>();
      const auto r = norm[p][l][k];
      auto column = X.select(1, k).to(at::kDouble).mv(Z[p][l][k].to(at::kDouble) / r);
      if (gate) column = column * gate->select(1, p);
      columns.push_back(column);
      weights.push_back(r);
    }
    const auto before = at::stack(weights);
    const auto after = reduced_weights(at::stack(columns, 1), before.clone());
    for (int64_t a = 0; a < active.size(0); ++a) {
      const auto group = result[active[a][0].item<int64_t>()][l][active[a][1].item<int64_t>()];
      group.mul_((after[a] / before[a]).to(Z.scalar_type()));
    }
  }
  return result;
}

Heads recover_sequence_heads(const Tensor& C) {
  TORCH_CHECK(C.dim() == 5 && C.size(0) == 2 && C.size(3) == C.size(4),
              "recover_heads: expected C of shape [2, c, d, n, n], but got ", C.sizes());
  const auto t = C.sum(-1).amax(-1);  // [2, c, d]
  const auto active = t.gt(1e-12 * t.max()).nonzero();
  std::vector<Tensor> w1, w2, w3;
  for (int64_t a = 0; a < active.size(0); ++a) {
    const auto at = [&](int64_t i) { return active[a][i].item<int64_t>(); };
    const auto block = C[at(0)][at(1)][at(2)];
    const auto sum = t[at(0)][at(1)][at(2)], root = sum.sqrt();
    auto W2 = at::zeros({C.size(2), C.size(1)}, C.options());
    W2[at(2)][at(1)] = root;
    w1.push_back(block / block.sum(-1, true));
    w2.push_back(W2);
    w3.push_back(at(0) == 0 ? root : -root);
  }
  if (w1.empty())
    return {at::zeros({0, C.size(3), C.size(4)}, C.options()),
            at::zeros({0, C.size(2), C.size(1)}, C.options()),
            at::zeros({0}, C.options()),
            {}};
  return {at::stack(w1), at::stack(w2), at::stack(w3), {}};
}

Tensor sequence_heads_to_z(const Heads& heads) {
  const auto weight = heads.w2 * heads.w3.view({-1, 1, 1});  // [h, d, c]
  const auto summed = [&](const Tensor& w) {
    return at::tensordot(w, heads.w1, {0}, {0}).transpose(0, 1);  // [c, d, n, n]
  };
  return at::stack({summed(weight.clamp_min(0)), summed((-weight).clamp_min(0))});
}

namespace {

using HeadTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

HeadTensors recover_boxed(const Tensor& Z, int64_t h) {
  const auto heads = recover_heads(Z, h);
  return {heads.w1, heads.w2, heads.w3, heads.gate_id};
}
Tensor heads_to_z_boxed(const Tensor& w1, const Tensor& w2, const Tensor& w3, const Tensor& id,
                        int64_t P) {
  return heads_to_z({w1, w2, w3, id}, P);
}
std::tuple<Tensor, Tensor, Tensor> recover_sequence_boxed(const Tensor& C) {
  const auto heads = recover_sequence_heads(C);
  return {heads.w1, heads.w2, heads.w3};
}
Tensor sequence_heads_to_z_boxed(const Tensor& w1, const Tensor& w2, const Tensor& w3) {
  return sequence_heads_to_z({w1, w2, w3, {}});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def("_convex_recover_heads(Tensor Z, int h) -> (Tensor w1, Tensor w2, Tensor w3, Tensor id)");
  m.def("_convex_heads_to_z(Tensor w1, Tensor w2, Tensor w3, Tensor gate_id, int P) -> Tensor");
  m.def("_convex_reduce_heads(Tensor Z, Tensor X, Tensor? gate) -> Tensor");
  m.def("_convex_recover_sequence_heads(Tensor C) -> (Tensor w1, Tensor w2, Tensor w3)");
  m.def("_convex_sequence_heads_to_z(Tensor w1, Tensor w2, Tensor w3) -> Tensor");
}
TORCH_LIBRARY_IMPL(kktorch, CompositeExplicitAutograd, m) {
  m.impl("_convex_recover_heads", &recover_boxed);
  m.impl("_convex_heads_to_z", &heads_to_z_boxed);
  m.impl("_convex_reduce_heads", &reduce_heads);
  m.impl("_convex_recover_sequence_heads", &recover_sequence_boxed);
  m.impl("_convex_sequence_heads_to_z", &sequence_heads_to_z_boxed);
}

}  // namespace kktorch
