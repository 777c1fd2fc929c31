#include "ops/attention_bn_varlen.h"

#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "ops/attention/problem.h"
#include "ops/attention_bn.h"
#include "ops/common/registration.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr std::string_view kName = "attention_bn_varlen";

using Signature = Tensor(const Tensor& query, const Tensor& key, const Tensor& value,
                         const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, c10::SymInt max_q,
                         c10::SymInt max_k, const OptionalTensor& beta, double beta_value,
                         bool use_std, double eps, bool is_causal, std::optional<double> scale,
                         bool enable_gqa);

struct Varlen {  // the arguments of attention_bn_varlen
  const Tensor &query, &key, &value, &cu_seqlens_q, &cu_seqlens_k;
  c10::SymInt max_q, max_k;
  const OptionalTensor& beta;
  double beta_value;
  bool use_std;
  double eps;
  bool is_causal;
  std::optional<double> scale;
  bool enable_gqa;
};

void check_offsets(std::string_view name, const Tensor& t, const Tensor& packed) {
  TORCH_CHECK(t.dim() == 1 && t.sym_size(0) >= 1 && t.scalar_type() == at::kInt &&
                  t.device() == packed.device(),
              kName, ": expected ", name, " int32 [B + 1] on ", packed.device(), ", but got ",
              t.scalar_type(), " ", t.sym_sizes(), " on ", t.device());
}

void check_varlen(const Varlen& a) {
  TORCH_CHECK(a.query.dim() == 3 && a.key.dim() == 3 && a.value.dim() == 3, kName,
              ": expected query, key, value of shape [total, heads, width], but got ",
              a.query.sym_sizes(), ", ", a.key.sym_sizes(), ", ", a.value.sym_sizes());
  TORCH_CHECK(a.key.sym_size(0) == a.value.sym_size(0), kName,
              ": expected as many keys as values, but got ", a.key.sym_sizes(), " and ",
              a.value.sym_sizes());
  // All sequences as one: the checks of attention_bn, under the name of this op.
  const auto one = [](const Tensor& t) { return t.unsqueeze(0).transpose(1, 2); };
  const auto query = one(a.query), key = one(a.key), value = one(a.value);
  const OptionalTensor none;
  detail::settle_attention(kName,
                           {query, key, value, a.beta, none, none, none, a.eps, 0.0, a.enable_gqa},
                           a.beta_value, "global", false, {}, a.scale);
  check_offsets("cu_seqlens_q", a.cu_seqlens_q, a.query);
  check_offsets("cu_seqlens_k", a.cu_seqlens_k, a.query);
  TORCH_CHECK(a.cu_seqlens_q.sym_size(0) == a.cu_seqlens_k.sym_size(0), kName,
              ": expected cu_seqlens_q and cu_seqlens_k of one size, but got ",
              a.cu_seqlens_q.sym_sizes(), " and ", a.cu_seqlens_k.sym_sizes());
  TORCH_CHECK_VALUE(a.max_q >= 0 && a.max_k >= 0, kName,
                    ": expected max_q and max_k >= 0, but got ", a.max_q, " and ", a.max_k);
  TORCH_CHECK_VALUE(!a.is_causal || a.max_q == a.max_k, kName,
                    ": expected equal query and key lengths with is_causal, but got max_q=",
                    a.max_q, " and max_k=", a.max_k);
}

/// Where looking at values costs nothing: not on a GPU, not in a trace.
bool is_readable(const Tensor& offsets) {
  return offsets.is_cpu() && !offsets.key_set().has(c10::DispatchKey::Python);
}

void check_offset_values(std::string_view name, const Tensor& offsets, const Tensor& packed,
                         const c10::SymInt& longest) {
  if (!is_readable(offsets)) return;
  const auto lengths = offsets.diff();
  const bool fits = offsets[0].item<int>() == 0 && offsets[-1].item<int>() == packed.size(0) &&
                    (lengths.numel() == 0 ||
                     (lengths.min().item<int>() >= 0 && lengths.max().item<int>() <= longest));
  TORCH_CHECK_VALUE(fits, kName, ": expected ", name, " ascending from 0 to ", packed.size(0),
                    " in steps of at most ", longest, ", but got ", offsets);
}

void check_equal_lengths(const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k) {
  if (!is_readable(cu_seqlens_q) || !is_readable(cu_seqlens_k)) return;
  const auto values = [](const Tensor& offsets) {
    const auto packed = offsets.contiguous();
    return at::ArrayRef<int>(packed.const_data_ptr<int>(), packed.numel()).vec();
  };
  const auto q = values(cu_seqlens_q), k = values(cu_seqlens_k);
  TORCH_CHECK_VALUE(
      q == k, kName, ": expected equal query and key lengths with is_causal, but got ",
      "cu_seqlens_q ", at::ArrayRef<int>(q), " and cu_seqlens_k ", at::ArrayRef<int>(k));
}

/// Where the rows of packed sequences lie in a padded batch.
struct Padding {
  Padding(const Tensor& offsets, const Tensor& packed, const c10::SymInt& longest)
      : batch(offsets.sym_size(0) - 1), length(longest) {
    const auto options = offsets.options().dtype(at::kLong);
    const auto position = at::arange(packed.sym_size(0), options);
    const auto sequence = at::searchsorted(offsets.narrow_symint(0, 1, batch), position,
                                           /*out_int32=*/false, /*right=*/true);
    place = sequence * at::Scalar(longest) +
            (position - offsets.to(at::kLong).index_select(0, sequence));
    padding = at::arange(longest, options) >= offsets.diff().unsqueeze(1);
  }

  /// [total, H, width] -> [B, H, longest, width]
  Tensor pad(const Tensor& packed) const {
    const auto heads = packed.sym_size(1), width = packed.sym_size(2);
    const auto rows = at::zeros_symint({batch * length, heads, width}, packed.options());
    return rows.index_copy(0, place, packed)
        .view_symint({batch, length, heads, width})
        .transpose(1, 2);
  }

  /// [B, H, longest, width] -> [total, H, width]
  Tensor pack(const Tensor& padded) const {
    return padded.transpose(1, 2).flatten(0, 1).index_select(0, place);
  }

  c10::SymInt batch, length;
  Tensor place;    // [total]: row of the padded batch
  Tensor padding;  // [B, longest], True = no such row
};

Tensor varlen_composite(const Varlen& a) {
  check_varlen(a);
  check_offset_values("cu_seqlens_q", a.cu_seqlens_q, a.query, a.max_q);
  check_offset_values("cu_seqlens_k", a.cu_seqlens_k, a.key, a.max_k);
  if (a.is_causal) check_equal_lengths(a.cu_seqlens_q, a.cu_seqlens_k);
  const Padding queries(a.cu_seqlens_q, a.query, a.max_q), keys(a.cu_seqlens_k, a.key, a.max_k);
  return queries.pack(attention_bn(queries.pad(a.query), keys.pad(a.key), keys.pad(a.value), a.beta,
                                   keys.padding, {}, {}, a.beta_value, a.use_std, a.eps, "auto",
                                   a.is_causal, {}, 0.0, a.scale, a.enable_gqa));
}

const auto& varlen_op() {
  static const auto op = detail::op_handle<Signature>("kktorch::attention_bn_varlen");
  return op;
}

template <c10::DeviceType device, c10::DispatchKey key_to_exclude>
Tensor varlen_autocast(const Varlen& a) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(key_to_exclude);
  const auto cast = [](const auto& t) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
  };
  return varlen_op().call(cast(a.query), cast(a.key), cast(a.value), a.cu_seqlens_q, a.cu_seqlens_k,
                          a.max_q, a.max_k, at::autocast::cached_cast(at::kFloat, a.beta, device),
                          a.beta_value, a.use_std, a.eps, a.is_causal, a.scale, a.enable_gqa);
}

template <auto kernel>
constexpr auto* call = &detail::Packed<Varlen, kernel, Signature>::call;

}  // namespace

Tensor attention_bn_varlen(const Tensor& query, const Tensor& key, const Tensor& value,
                           const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                           const c10::SymInt& max_q, const c10::SymInt& max_k,
                           const OptionalTensor& beta, double beta_value, bool use_std, double eps,
                           bool is_causal, std::optional<double> scale, bool enable_gqa) {
  return varlen_op().call(query, key, value, cu_seqlens_q, cu_seqlens_k, max_q, max_k, beta,
                          beta_value, use_std, eps, is_causal, scale, enable_gqa);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def(
      "attention_bn_varlen(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, "
      "Tensor cu_seqlens_k, SymInt max_q, SymInt max_k, Tensor? beta=None, *, "
      "float beta_value=1.0, bool use_std=True, float eps=1e-05, bool is_causal=False, "
      "float? scale=None, bool enable_gqa=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(kktorch, CompositeImplicitAutograd, m) {
  m.impl("attention_bn_varlen", call<varlen_composite>);
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCPU, m) {
  m.impl("attention_bn_varlen", call<varlen_autocast<at::kCPU, c10::DispatchKey::AutocastCPU>>);
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCUDA, m) {
  m.impl("attention_bn_varlen", call<varlen_autocast<at::kCUDA, c10::DispatchKey::AutocastCUDA>>);
}

}  // namespace kktorch
