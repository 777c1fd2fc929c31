#include "ops/attention_bn_decode.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include <limits>

#include "csrc/attention/bn_decode.h"
#include "ops/attention/problem.h"
#include "ops/attention/reference.h"
#include "ops/common/head_rows.h"
#include "ops/common/registration.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr std::string_view kName = "attention_bn_decode";

using Signature = Tensor(const Tensor& query, const Tensor& key_new, const Tensor& value_new,
                         Tensor& key_cache, Tensor& value_cache, Tensor& length, Tensor& mean,
                         Tensor& m2, const OptionalTensor& beta, double beta_value, bool use_std,
                         double eps, std::optional<double> scale, bool enable_gqa);

struct Decode {  // the arguments of attention_bn_decode
  const Tensor &query, &key_new, &value_new;
  Tensor &key_cache, &value_cache, &length, &mean, &m2;
  const OptionalTensor& beta;
  double beta_value;
  bool use_std;
  double eps;
  std::optional<double> scale;
  bool enable_gqa;

  at::ScalarType acc() const { return at::toOpMathType(query.scalar_type()); }
};

const OptionalTensor kNone;

// ---- checks ----

void check_state(std::string_view name, const Tensor& t, c10::SymIntArrayRef sizes,
                 at::ScalarType type, c10::Device device) {
  TORCH_CHECK(t.sym_sizes() == sizes && t.scalar_type() == type && t.device() == device, kName,
              ": expected ", name, " ", type, " ", sizes, " on ", device, ", but got ",
              t.scalar_type(), " ", t.sym_sizes(), " on ", t.device());
}

/// @return the default of scale.
double check_decode(const Decode& a) {
  const auto& q = a.query;
  const auto settled = detail::settle_attention(
      kName, {q, a.key_new, a.value_new, a.beta, kNone, kNone, kNone, a.eps, 0.0, a.enable_gqa},
      a.beta_value, "global", false, {}, a.scale);
  TORCH_CHECK_VALUE(q.sym_size(2) == a.key_new.sym_size(2) && q.sym_size(2) >= 1, kName,
                    ": expected as many new queries as keys, at least 1, but got ", q.sym_sizes(),
                    " and ", a.key_new.sym_sizes());
  TORCH_CHECK(a.key_cache.dim() == 4, kName, ": expected key_cache [B, heads, capacity, width], ",
              "but got ", a.key_cache.sym_sizes());
  const auto B = q.sym_size(0), Hk = a.key_new.sym_size(1), C = a.key_cache.sym_size(2);
  const auto D = q.sym_size(3), Dv = a.value_new.sym_size(3);
  const auto device = q.device();
  check_state("key_cache", a.key_cache, {B, Hk, C, D}, q.scalar_type(), device);
  check_state("value_cache", a.value_cache, {B, Hk, C, Dv}, q.scalar_type(), device);
  check_state("length", a.length, {B}, at::kLong, device);
  check_state("mean", a.mean, {B, Hk, D}, a.acc(), device);
  check_state("m2", a.m2, {B, Hk, D}, a.acc(), device);
  return settled.scale;
}

Tensor empty_output(const Decode& a) {
  return detail::empty_heads_last(
      {a.query.sym_size(0), a.query.sym_size(1), a.query.sym_size(2), a.value_new.sym_size(3)},
      a.query.options());
}

Tensor decode_meta(const Decode& a) {
  check_decode(a);
  return empty_output(a);
}

/// beta of every query head, [H], acc.
Tensor beta_of_heads(const Decode& a) {
  const int64_t H = a.query.size(1);
  const auto options = a.query.options().dtype(a.acc());
  return a.beta ? a.beta->to(a.acc()).expand({H}).contiguous()
                : at::full({H}, a.beta_value, options);
}

// ---- CPU ----

/// The keys of a head are cut into parts where there are few heads: by sizes alone, so that results
/// do not depend on the number of threads.
int64_t parts_of(int64_t heads, int64_t longest) {
  constexpr int64_t kTasks = 64, kPart = 512;
  return std::clamp<int64_t>(kTasks / heads, 1, (longest + kPart - 1) / kPart);
}

template <typename T>
class DecodeCpu {
 public:
  using A = csrc::acc_t<T>;

  DecodeCpu(const Decode& a, double scale, const Tensor& out)
      : a_(a),
        out_(out),
        query_(detail::channels_contiguous(a.query)),
        beta_(beta_of_heads(a)),
        lengths_(a.length.contiguous()),
        Hk_(a.key_new.size(1)),
        T_new_(a.query.size(2)),
        G_(a.query.size(1) / Hk_),
        D_(a.query.size(3)),
        Dv_(a.value_new.size(3)),
        scale_(static_cast<A>(scale)) {}

  void run() {
    const int64_t heads = a_.query.size(0) * Hk_, rows = G_ * T_new_;
    const int64_t longest = lengths_.max().item<int64_t>() + T_new_;
    const int64_t parts = parts_of(heads, longest);
    const auto options = beta_.options();
    const auto query = at::empty({heads, rows, D_}, options);
    const auto partial = at::empty({heads, parts, rows, Dv_ + 2}, options);
    A* const q = query.template mutable_data_ptr<A>();
    A* const p = partial.template mutable_data_ptr<A>();
    const auto part_rows = [&](int64_t u, int64_t part) {
      A* const at = p + (u * parts + part) * rows * (Dv_ + 2);
      return csrc::DecodeRows<A>{q + u * rows * D_, at, at + rows, at + 2 * rows};
    };
    const auto& kernels = csrc::decode_kernels<T>();
    detail::for_each<A>(heads, (rows + T_new_) * D_, 3 * D_, [&](int64_t u, A* scratch) {
      advance(kernels, u, part_rows(u, 0), scratch);
    });
    const int64_t scratch_size = csrc::decode_scratch_size(D_);
    detail::for_each<A>(heads * parts, longest / parts * rows * (D_ + Dv_), scratch_size,
                        [&](int64_t unit, A* scratch) {
                          const int64_t u = unit / parts, part = unit % parts;
                          const auto head = head_of(u);
                          const int64_t N = head.past + T_new_;
                          kernels.attend(head, N * part / parts, N * (part + 1) / parts,
                                         part_rows(u, part), scratch);
                        });
    detail::for_each<A>(heads, rows * parts * Dv_, Dv_,
                        [&](int64_t u, A* scratch) { merge(u, part_rows(u, 0), parts, scratch); });
  }

 private:
  csrc::DecodeHead<T> head_of(int64_t u) const {
    const int64_t b = u / Hk_, hk = u % Hk_;
    return {detail::rows_of<T>(a_.key_cache, b, hk),
            detail::rows_of<T>(a_.value_cache, b, hk),
            G_,
            T_new_,
            D_,
            Dv_,
            lengths_.template const_data_ptr<int64_t>()[b]};
  }

  void advance(const csrc::DecodeKernels<T>& kernels, int64_t u, const csrc::DecodeRows<A>& rows,
               A* scratch) const {
    const int64_t b = u / Hk_, hk = u % Hk_;
    std::vector<csrc::Rows<const T>> query;
    for (int64_t g = 0; g < G_; ++g) query.push_back(detail::rows_of<T>(query_, b, hk * G_ + g));
    A* const mean = a_.mean.template mutable_data_ptr<A>() + u * D_;
    A* const m2 = a_.m2.template mutable_data_ptr<A>() + u * D_;
    kernels.advance(head_of(u), query.data(), beta_.template const_data_ptr<A>() + hk * G_,
                    static_cast<A>(a_.eps), a_.use_std, scale_, {mean, m2}, rows, scratch);
  }

  /// first: the rows of part 0, from which those of the other parts are at a fixed distance.
  void merge(int64_t u, const csrc::DecodeRows<A>& first, int64_t parts, A* scratch) const {
    const int64_t b = u / Hk_, rows = G_ * T_new_, stride = rows * (Dv_ + 2);
    for (int64_t row = 0; row < rows; ++row) {
      csrc::merge_decoded(first.max + row, first.sum + row, first.out + row * Dv_, parts, stride,
                          stride, Dv_, scratch);
      const auto out = detail::mutable_rows_of<T>(out_, b, u % Hk_ * G_ + row / T_new_);
      for (int64_t e = 0; e < Dv_; ++e) out[row % T_new_][e] = static_cast<T>(scratch[e]);
    }
  }

  const Decode& a_;
  const Tensor& out_;
  Tensor query_, beta_, lengths_;
  int64_t Hk_, T_new_, G_, D_, Dv_;
  A scale_;
};

void check_capacity(const Decode& a) {
  const int64_t need = a.length.max().item<int64_t>() + a.query.size(2);
  TORCH_CHECK_VALUE(need <= a.key_cache.size(2), kName, ": expected capacity >= ", need,
                    ", but got ", a.key_cache.size(2));
  TORCH_CHECK_VALUE(a.length.min().item<int64_t>() >= 0, kName, ": expected lengths >= 0, but got ",
                    a.length.min().item<int64_t>());
  for (const auto* cache : {&a.key_cache, &a.value_cache})
    TORCH_CHECK(cache->stride(-1) == 1, kName,
                ": expected caches with contiguous channels, but got strides ", cache->strides());
  TORCH_CHECK(a.mean.is_contiguous() && a.m2.is_contiguous(), kName,
              ": expected contiguous mean and m2, but got strides ", a.mean.strides(), " and ",
              a.m2.strides());
}

Tensor decode_cpu(const Decode& a) {
  const double scale = check_decode(a);
  const auto out = empty_output(a);
  const int64_t B = a.query.size(0), T_new = a.query.size(2);
  if (B == 0 || a.query.size(1) == 0) return out;
  check_capacity(a);
  const auto length = a.length.contiguous();
  for (int64_t b = 0; b < B; ++b) {
    const int64_t past = length.const_data_ptr<int64_t>()[b];
    a.key_cache[b].narrow(1, past, T_new).copy_(a.key_new[b]);
    a.value_cache[b].narrow(1, past, T_new).copy_(a.value_new[b]);
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, a.query.scalar_type(),
                                  "attention_bn_decode",
                                  [&] { DecodeCpu<scalar_t>(a, scale, out).run(); });
  a.length.add_(T_new);
  return out;
}

// ---- a composition of ATen ops, without synchronisation: CUDA ----

/// Takes key t of the chunk into the moments; queries [B, H, 1, D] of the token, normalised.
Tensor advance_aten(const Decode& a, int64_t t, const Tensor& x0, const Tensor& beta) {
  const auto k = a.key_new.select(2, t).to(a.acc());                 // [B, Hk, D]
  const auto n = (a.length + (t + 1)).to(a.acc()).view({-1, 1, 1});  // [B, 1, 1]
  const auto delta = k - a.mean;
  a.mean.add_(delta / n);
  a.m2.add_(delta * (k - a.mean));
  const auto floor = a.m2 / n + a.eps;
  auto scale = a.use_std ? at::where(floor > 0, floor.reciprocal(), 0 * floor) : floor * 0 + 1;
  scale = at::where(n > 1, scale, 0 * scale).unsqueeze(2);
  const auto H = a.query.size(1);
  const auto of_heads = [&](const Tensor& s) { return detail::repeat_heads(s, H); };
  const auto q = a.query.narrow(2, t, 1).to(a.acc());
  const auto m = a.mean.unsqueeze(2) - x0;
  return ((q - beta * of_heads(x0)) - beta * of_heads(m)) * of_heads(scale);
}

Tensor decode_aten(const Decode& a) {
  const double scale = check_decode(a);
  auto out = empty_output(a);
  const int64_t B = a.query.size(0), T_new = a.query.size(2), C = a.key_cache.size(2);
  if (B == 0 || a.query.size(1) == 0) return out;
  const auto position = a.length.unsqueeze(1) + at::arange(T_new, a.length.options());  // [B, T]
  const auto write = [&](Tensor& cache, const Tensor& rows) {
    cache.scatter_(2, position.view({B, 1, T_new, 1}).expand_as(rows), rows);
  };
  write(a.key_cache, a.key_new);
  write(a.value_cache, a.value_new);
  const auto x0 = a.key_cache.narrow(2, 0, 1).to(a.acc());  // [B, Hk, 1, D]
  const auto beta = beta_of_heads(a).view({1, -1, 1, 1});
  std::vector<Tensor> queries;
  for (int64_t t = 0; t < T_new; ++t) queries.push_back(advance_aten(a, t, x0, beta).squeeze(2));
  // What stands behind the last token may be anything.
  const auto visible = at::arange(C, a.length.options()) <= position.unsqueeze(-1);  // [B, T, C]
  const auto used = visible.select(1, T_new - 1).view({B, 1, C, 1});
  const auto H = a.query.size(1);
  const auto keys = (a.key_cache.to(a.acc()) - x0).masked_fill(used.logical_not(), 0);
  const auto values = a.value_cache.to(a.acc()).masked_fill(used.logical_not(), 0);
  const auto logits =
      at::matmul(at::stack(queries, 2) * scale, detail::repeat_heads(keys, H).transpose(-1, -2))
          .masked_fill(visible.logical_not().unsqueeze(1),
                       -std::numeric_limits<double>::infinity());
  out.copy_(at::matmul(logits.softmax(-1), detail::repeat_heads(values, H)));
  a.length.add_(T_new);
  return out;
}

// ---- Autograd: inference only ----

const auto& decode_op() {
  static const auto op = detail::op_handle<Signature>("kktorch::attention_bn_decode");
  return op;
}

Tensor decode_autograd(const Decode& a) {
  std::vector<Tensor> inputs{a.query,       a.key_new, a.value_new, a.key_cache,
                             a.value_cache, a.mean,    a.m2};
  if (a.beta) inputs.push_back(*a.beta);
  TORCH_CHECK(!torch::autograd::compute_requires_grad(inputs), kName,
              ": expected no input requiring grad (inference only), but got one");
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto out =
      decode_op().call(a.query, a.key_new, a.value_new, a.key_cache, a.value_cache, a.length,
                       a.mean, a.m2, a.beta, a.beta_value, a.use_std, a.eps, a.scale, a.enable_gqa);
  for (const auto* state : {&a.key_cache, &a.value_cache, &a.length, &a.mean, &a.m2})
    torch::autograd::increment_version(*state);
  return out;
}

/// The caches decide the dtype: new tokens are cast to it.
template <c10::DeviceType device, c10::DispatchKey key_to_exclude>
Tensor decode_autocast(const Decode& a) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(key_to_exclude);
  const auto cast = [&](const Tensor& t) { return t.to(a.key_cache.scalar_type()); };
  return decode_op().call(cast(a.query), cast(a.key_new), cast(a.value_new), a.key_cache,
                          a.value_cache, a.length, a.mean, a.m2, a.beta, a.beta_value, a.use_std,
                          a.eps, a.scale, a.enable_gqa);
}

template <auto kernel>
constexpr auto* call = &detail::Packed<Decode, kernel, Signature>::call;

}  // namespace

Tensor attention_bn_decode(const Tensor& query, const Tensor& key_new, const Tensor& value_new,
                           Tensor& key_cache, Tensor& value_cache, Tensor& length, Tensor& mean,
                           Tensor& m2, const OptionalTensor& beta, double beta_value, bool use_std,
                           double eps, std::optional<double> scale, bool enable_gqa) {
  return decode_op().call(query, key_new, value_new, key_cache, value_cache, length, mean, m2, beta,
                          beta_value, use_std, eps, scale, enable_gqa);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def(
      "attention_bn_decode(Tensor query, Tensor key_new, Tensor value_new, Tensor(a!) key_cache, "
      "Tensor(b!) value_cache, Tensor(c!) length, Tensor(d!) mean, Tensor(e!) m2, "
      "Tensor? beta=None, *, float beta_value=1.0, bool use_std=True, float eps=1e-05, "
      "float? scale=None, bool enable_gqa=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(kktorch, CPU, m) { m.impl("attention_bn_decode", call<decode_cpu>); }
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) { m.impl("attention_bn_decode", call<decode_aten>); }
TORCH_LIBRARY_IMPL(kktorch, Meta, m) { m.impl("attention_bn_decode", call<decode_meta>); }
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) { m.impl("attention_bn_decode", call<decode_autograd>); }
TORCH_LIBRARY_IMPL(kktorch, AutocastCPU, m) {
  m.impl("attention_bn_decode", call<decode_autocast<at::kCPU, c10::DispatchKey::AutocastCPU>>);
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCUDA, m) {
  m.impl("attention_bn_decode", call<decode_autocast<at::kCUDA, c10::DispatchKey::AutocastCUDA>>);
}

}  // namespace kktorch
