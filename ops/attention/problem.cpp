#include "ops/attention/problem.h"

#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cmath>

namespace kktorch::detail {
namespace {

using at::Tensor;

void check_shapes(std::string_view op, const AttentionArguments& a) {
  const auto &q = a.query, &k = a.key, &v = a.value;
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, op,
              ": expected query, key, value of shape [B, heads, length, width], but got ",
              q.sym_sizes(), ", ", k.sym_sizes(), ", ", v.sym_sizes());
  TORCH_CHECK(q.device() == k.device() && q.device() == v.device(), op,
              ": expected query, key, value on one device, but got ", q.device(), ", ", k.device(),
              ", ", v.device());
  TORCH_CHECK(is_supported_dtype(q.scalar_type()) && q.scalar_type() == k.scalar_type() &&
                  q.scalar_type() == v.scalar_type(),
              op,
              ": expected query, key, value of one dtype in {float16, bfloat16, float32, float64}, "
              "but got ",
              q.scalar_type(), ", ", k.scalar_type(), ", ", v.scalar_type());
  TORCH_CHECK(q.sym_size(0) == k.sym_size(0) && q.sym_size(0) == v.sym_size(0), op,
              ": expected equal batch sizes, but got ", q.sym_size(0), ", ", k.sym_size(0), ", ",
              v.sym_size(0));
  TORCH_CHECK(k.sym_size(2) == v.sym_size(2) && k.sym_size(1) == v.sym_size(1), op,
              ": expected equal key and value lengths and heads, but got key ", k.sym_sizes(),
              " and value ", v.sym_sizes());
  TORCH_CHECK(q.sym_size(3) == k.sym_size(3) && q.sym_size(3) >= 1, op,
              ": expected query and key of equal width >= 1, but got ", q.sym_size(3), ", ",
              k.sym_size(3));
  const auto H = q.sym_size(1), Hk = k.sym_size(1);
  TORCH_CHECK(H == Hk || (a.enable_gqa && Hk > 0 && H % Hk == 0), op, ": expected ", H,
              " query heads to equal ", Hk,
              " key heads (pass enable_gqa=True if a multiple is intended), but got ",
              q.sym_sizes(), " and ", k.sym_sizes());
}

void check_key_tensors(std::string_view op, const AttentionArguments& a) {
  const auto B = a.key.sym_size(0), N = a.key.sym_size(2);
  const auto fits = [&](const Tensor& t) {
    return t.dim() == 2 && t.sym_size(0) == B && t.sym_size(1) == N && t.device() == a.key.device();
  };
  if (a.key_padding_mask) {
    const auto& t = *a.key_padding_mask;
    TORCH_CHECK(t.scalar_type() == at::kBool && fits(t), op, ": expected key_padding_mask bool [",
                B, ",", N, "], True = ignore, but got ", t.scalar_type(), " ", t.sym_sizes(),
                " on ", t.device());
  }
  if (a.key_weight) {
    const auto& t = *a.key_weight;
    TORCH_CHECK(t.is_floating_point() && fits(t) && !t.requires_grad(), op,
                ": expected key_weight floating [", B, ",", N, "] without requires_grad, but got ",
                t.scalar_type(), " ", t.sym_sizes(), " on ", t.device(),
                t.requires_grad() ? " with requires_grad" : "");
  }
}

void check_attn_mask(std::string_view op, const AttentionArguments& a) {
  if (!a.attn_mask) return;
  const auto& t = *a.attn_mask;
  const std::array<c10::SymInt, 4> full = {a.query.sym_size(0), a.query.sym_size(1),
                                           a.query.sym_size(2), a.key.sym_size(2)};
  const bool type_fits = t.scalar_type() == at::kBool || t.scalar_type() == at::kFloat ||
                         t.scalar_type() == a.query.scalar_type();
  bool fits = type_fits && t.device() == a.query.device() && (t.dim() == 2 || t.dim() == 4);
  for (int64_t d = 1; fits && d <= t.dim(); ++d) {
    const auto size = t.sym_size(-d);
    fits = size == full[4 - d] || (d > 2 && size == 1);
  }
  TORCH_CHECK(
      fits, op,
      ": expected attn_mask bool or floating (float32 or the dtype of query), broadcastable "
      "from [M,N] or [B|1,H|1,M,N] = [",
      full[0], ",", full[1], ",", full[2], ",", full[3], "], but got ", t.scalar_type(), " ",
      t.sym_sizes(), " on ", t.device());
}

}  // namespace

void check_attention(std::string_view op, const AttentionArguments& a) {
  check_shapes(op, a);
  if (a.beta) {
    const auto& t = *a.beta;
    const auto H = a.query.sym_size(1);
    TORCH_CHECK(t.is_floating_point() && t.device() == a.query.device() &&
                    (t.dim() == 0 || (t.dim() == 1 && (t.sym_size(0) == 1 || t.sym_size(0) == H))),
                op, ": expected beta floating of shape [], [1] or [", H, "], but got ",
                t.scalar_type(), " ", t.sym_sizes(), " on ", t.device());
  }
  check_key_tensors(op, a);
  check_attn_mask(op, a);
  TORCH_CHECK_VALUE(std::isfinite(a.eps) && a.eps >= 0, op, ": expected finite eps >= 0, but got ",
                    a.eps);
  TORCH_CHECK_VALUE(a.dropout_p >= 0 && a.dropout_p < 1, op,
                    ": expected 0 <= dropout_p < 1, but got ", a.dropout_p);
}

AttentionDefaults settle_attention(std::string_view op, const AttentionArguments& a,
                                   double beta_value, std::string_view stats, bool is_causal,
                                   const std::optional<c10::SymInt>& query_offset,
                                   std::optional<double> scale) {
  check_attention(op, a);
  TORCH_CHECK_VALUE(!a.beta || beta_value == 1.0, op,
                    ": expected beta_value=1.0 when beta is given, but got ", beta_value);
  TORCH_CHECK_VALUE(std::isfinite(beta_value), op, ": expected a finite beta_value, but got ",
                    beta_value);
  TORCH_CHECK_VALUE(!scale || std::isfinite(*scale), op, ": expected a finite scale, but got ",
                    *scale);
  TORCH_CHECK_VALUE(stats == "auto" || stats == "global" || stats == "prefix" || stats == "support",
                    op, ": expected one of auto, global, prefix, support, but got '", stats,
                    "' for stats");
  TORCH_CHECK_VALUE(stats != "prefix" || is_causal, op,
                    ": expected is_causal=True with stats='prefix', but got is_causal=False");
  TORCH_CHECK_VALUE(!query_offset || *query_offset >= 0, op,
                    ": expected query_offset >= 0, but got ", *query_offset);
  const auto M = a.query.sym_size(2), N = a.key.sym_size(2);
  TORCH_CHECK_VALUE(!is_causal || query_offset || M == N, op,
                    ": expected query_offset >= 0 to be given because M=", M, " differs from N=", N,
                    ", but got None");
  if (stats == "global" && is_causal) {
    TORCH_WARN_ONCE(op,
                    ": is_causal with stats='global' lets every query feel the mean and deviation "
                    "of keys in its future; use stats='prefix' where that matters");
  }
  return {.stats = stats != "auto" ? stats
                   : is_causal     ? "prefix"
                                   : "global",
          .query_offset = is_causal && query_offset ? *query_offset : c10::SymInt(0),
          .scale = scale.value_or(1 / std::sqrt(static_cast<double>(
                                          a.query.sym_size(3).guard_int(__FILE__, __LINE__))))};
}

bool is_supported_dtype(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 || type == at::kFloat || type == at::kDouble;
}

Tensor empty_heads_last(c10::SymIntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty_symint({sizes[0], sizes[2], sizes[1], sizes[3]}, options).transpose(1, 2);
}

Tensor heads_last(const Tensor& t, at::ScalarType dtype) {
  if (t.scalar_type() == dtype && t.transpose(1, 2).is_contiguous()) return t;
  return empty_heads_last(t.sym_sizes(), t.options().dtype(dtype)).copy_(t);
}

Tensor total_key_weight(std::string_view op, const AttentionArguments& a) {
  const auto acc = at::toOpMathType(a.query.scalar_type());
  if (!a.key_weight && !a.key_padding_mask) return {};
  if (!a.key_weight) return a.key_padding_mask->logical_not().to(acc).contiguous();
#ifndef NDEBUG
  if (a.query.is_cpu())
    TORCH_CHECK_VALUE(a.key_weight->ge(0).all().item<bool>(), op,
                      ": expected key_weight >= 0, but got a negative or NaN weight");
#else
  (void)op;
#endif
  const auto weight = a.key_weight->to(acc);
  return (a.key_padding_mask ? weight.masked_fill(*a.key_padding_mask, 0) : weight).contiguous();
}

bool is_trivial(const AttentionProblem& p) {
  return p.query.numel() == 0 || p.value.numel() == 0 || p.key.numel() == 0;
}

Tensor channels_contiguous(const Tensor& tensor) {
  return tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

}  // namespace kktorch::detail
