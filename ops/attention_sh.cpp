#include "ops/attention_sh.h"

#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "csrc/attention/core/core.h"
#include "ops/attention/backends.h"
#include "ops/attention/causal_windows.h"
#include "ops/attention/head_groups.h"
#include "ops/attention/pooled_heads.h"
#include "ops/attention_bn.h"
#include "ops/common/registration.h"
#include "ops/token_pool.h"

// Heads of one scale are one attention. Not causal: attention_bn on pooled keys and values; every
// gradient is that of the composition. On the CPU the heads of all scales are one op, which pools
// on the way into the attention core (ops/attention/pooled_heads.h). Causal with windows of several
// tokens: the same op, for one scale, whose backward is that of ops/attention/causal_windows.h
// between the two halves of the normaliser (ops/attention/normalise.h). What would need the M x N
// probabilities anyway, a mask or an offset of causal queries, is left to attention_sh_ref.

namespace kktorch {
namespace {

using at::Tensor;
using detail::AttentionProblem;
using OptionalTensor = std::optional<Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr std::string_view kName = "attention_sh";

// ---- the op: causal with one scale and as many queries as keys, or not causal ----

using ForwardSignature = ThreeTensors(const Tensor& query, const Tensor& key, const Tensor& value,
                                      const OptionalTensor& beta,
                                      const OptionalTensor& key_padding_mask,
                                      at::IntArrayRef scales, c10::SymInt num_special,
                                      std::string_view tail, bool count_weighting, bool bn,
                                      double beta_value, bool use_std, double eps, bool is_causal,
                                      double scale);

struct Forward {  // the arguments of _attention_sh_forward
  const Tensor &query, &key, &value;
  const OptionalTensor &beta, &key_padding_mask;
  at::IntArrayRef scales;
  c10::SymInt num_special;
  std::string_view tail;
  bool count_weighting, bn;
  double beta_value;
  bool use_std;
  double eps;
  bool is_causal;
  double scale;
};

using BackwardSignature = FourTensors(
    const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value,
    const OptionalTensor& beta, const OptionalTensor& key_padding_mask, const Tensor& out,
    const Tensor& logsumexp, const Tensor& stats_saved, at::IntArrayRef scales,
    c10::SymInt num_special, std::string_view tail, bool count_weighting, bool bn,
    double beta_value, bool use_std, double eps, bool is_causal, double scale);

struct Backward {  // the arguments of _attention_sh_backward
  const Tensor &grad_out, &query, &key, &value;
  const OptionalTensor &beta, &key_padding_mask;
  const Tensor &out, &logsumexp, &stats_saved;
  at::IntArrayRef scales;
  c10::SymInt num_special;
  std::string_view tail;
  bool count_weighting, bn;
  double beta_value;
  bool use_std;
  double eps;
  bool is_causal;
  double scale;
};

const auto& forward_op() {
  static const auto op = detail::op_handle<ForwardSignature>("kktorch::_attention_sh_forward");
  return op;
}

const auto& backward_op() {
  static const auto op = detail::op_handle<BackwardSignature>("kktorch::_attention_sh_backward");
  return op;
}

const OptionalTensor kNone;

template <typename Arguments>
detail::AttentionArguments shared_arguments(const Arguments& a) {
  return {a.query, a.key, a.value, a.beta, a.key_padding_mask, kNone, kNone, a.eps, 0.0, true};
}

template <typename Arguments>
void check_op(const Arguments& a) {
  const auto shared = shared_arguments(a);
  detail::check_attention(kName, shared);
  detail::check_scales(kName, shared, a.scales, a.tail, a.num_special);
  if (!a.is_causal) return;
  TORCH_CHECK_VALUE(a.scales.size() == 1, kName, ": expected 1 scale of causal heads, but got ",
                    a.scales);
  TORCH_CHECK_VALUE(a.query.sym_size(2) == a.key.sym_size(2), kName,
                    ": expected as many queries as keys, but got ", a.query.sym_sizes(), " and ",
                    a.key.sym_sizes());
}

ThreeTensors forward_meta(const Forward& a) {
  check_op(a);
  const auto B = a.query.sym_size(0), H = a.query.sym_size(1), M = a.query.sym_size(2);
  const auto acc = a.query.options().dtype(at::toOpMathType(a.query.scalar_type()));
  return {detail::empty_heads_last({B, H, M, a.value.sym_size(3)}, a.query.options()),
          detail::empty_heads_last({B, H, M, 1}, acc).squeeze(-1),
          at::empty_symint({B, a.key.sym_size(1), 3, a.query.sym_size(3)}, acc)};
}

FourTensors backward_meta(const Backward& a) {
  check_op(a);
  TORCH_CHECK(a.grad_out.sym_sizes() == a.out.sym_sizes(),
              "_attention_sh_backward: expected grad_out of shape ", a.out.sym_sizes(),
              ", but got ", a.grad_out.sym_sizes());
  const auto like = [](const Tensor& t) {
    return detail::empty_heads_last(t.sym_sizes(), t.options());
  };
  return {like(a.query), like(a.key), like(a.value),
          a.beta ? at::empty_symint(a.beta->sym_sizes(), a.beta->options())
                 : at::empty({0}, a.query.options())};
}

template <typename Arguments>
AttentionProblem make_problem(const Arguments& a) {
  const auto acc = a.query.options().dtype(at::toOpMathType(a.query.scalar_type()));
  const int64_t H = a.query.size(1);
  return {
      .query = detail::channels_contiguous(a.query),
      .key = detail::channels_contiguous(a.key),
      .value = detail::channels_contiguous(a.value),
      .beta = a.beta ? a.beta->to(acc.dtype()).expand({H}).contiguous()
                     : at::full({H}, a.beta_value, acc),
      .key_weight = a.is_causal ? detail::total_key_weight(kName, shared_arguments(a)) : Tensor(),
      .attn_mask = {},
      .eps = a.eps,
      .scale = a.scale,
      .dropout_p = 0,
      .use_std = a.use_std,
      .plain = !a.bn,
      .prefix = a.bn && a.is_causal,
      .is_causal = a.is_causal,
      .query_offset = 0};
}

template <typename Arguments>
detail::WindowPattern pattern_of(const Arguments& a) {
  return {a.scales.front(), a.num_special.expect_int(), a.count_weighting};
}

template <typename Arguments>
detail::PooledHeads pooled_heads(const Arguments& a, const AttentionProblem& problem) {
  TORCH_CHECK_NOT_IMPLEMENTED(detail::core_takes(problem), "_", kName,
                              ": expected the heads of several scales on the CPU, at most ",
                              csrc::kCoreMaxWidth, " wide, but got a query ", a.query.sym_sizes(),
                              " on ", a.query.device());
  auto scales = a.scales.vec();
  if (scales.size() == 1) scales.resize(problem.Hk(), scales.front());
  return {problem,          a.key_padding_mask ? a.key_padding_mask->contiguous() : Tensor(),
          scales,           a.num_special.expect_int(),
          a.tail == "drop", a.count_weighting};
}

template <typename Tensors>
Tensors zeroed(Tensors tensors) {
  std::apply([](auto&... t) { (t.zero_(), ...); }, tensors);
  return tensors;
}

ThreeTensors forward_kernel(const Forward& a) {
  const auto empty = forward_meta(a);
  const auto problem = make_problem(a);
  if (detail::is_trivial(problem)) return zeroed(empty);
  const auto result = a.is_causal ? detail::causal_windows_forward(problem, pattern_of(a))
                                  : detail::pooled_heads_forward(pooled_heads(a, problem));
  return {result.out, result.logsumexp, result.statistics};
}

FourTensors backward_kernel(const Backward& a) {
  const auto empty = backward_meta(a);
  const auto problem = make_problem(a);
  if (detail::is_trivial(problem)) return zeroed(empty);
  const detail::AttentionResult result{a.out, a.logsumexp, a.stats_saved, {}};
  const auto grads =
      a.is_causal ? detail::causal_windows_backward(problem, pattern_of(a), result, a.grad_out)
                  : detail::pooled_heads_backward(pooled_heads(a, problem), result, a.grad_out);
  return {grads.query, grads.key, grads.value,
          a.beta ? grads.beta.sum_to_size(a.beta->sizes()).to(a.beta->scalar_type())
                 : std::get<3>(empty)};
}

struct WindowAttention : torch::autograd::Function<WindowAttention> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& query, const Tensor& key,
                                                const Tensor& value, const OptionalTensor& beta,
                                                const Forward& a) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [out, logsumexp, statistics] = forward_op().call(
        query, key, value, beta, a.key_padding_mask, a.scales, a.num_special, a.tail,
        a.count_weighting, a.bn, a.beta_value, a.use_std, a.eps, a.is_causal, a.scale);
    ctx->save_for_backward({query, key, value, beta.value_or(Tensor()),
                            a.key_padding_mask.value_or(Tensor()), out, logsumexp, statistics});
    ctx->mark_non_differentiable({logsumexp, statistics});
    ctx->set_materialize_grads(false);
    auto& saved = ctx->saved_data;
    saved["scales"] = a.scales.vec();
    saved["num_special"] = a.num_special;
    saved["tail"] = std::string(a.tail);
    saved["count_weighting"] = a.count_weighting;
    saved["bn"] = a.bn;
    saved["beta_value"] = a.beta_value;
    saved["use_std"] = a.use_std;
    saved["eps"] = a.eps;
    saved["is_causal"] = a.is_causal;
    saved["scale"] = a.scale;
    return {out, logsumexp, statistics};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    torch::autograd::variable_list result(5);  // query, key, value, beta, and none for the rest
    if (!grads[0].defined()) return result;
    const auto t = ctx->get_saved_variables();
    auto& saved = ctx->saved_data;
    const auto optional = [&](size_t i) {
      return t[i].defined() ? OptionalTensor(t[i]) : std::nullopt;
    };
    auto [query, key, value, beta] = backward_op().call(
        grads[0], t[0], t[1], t[2], optional(3), optional(4), t[5], t[6], t[7],
        saved["scales"].toIntVector(), saved["num_special"].toSymInt(),
        saved["tail"].toStringView(), saved["count_weighting"].toBool(), saved["bn"].toBool(),
        saved["beta_value"].toDouble(), saved["use_std"].toBool(), saved["eps"].toDouble(),
        saved["is_causal"].toBool(), saved["scale"].toDouble());
    result[0] = query, result[1] = key, result[2] = value;
    if (t[3].defined()) result[3] = beta;
    return result;
  }
};

ThreeTensors forward_autograd(const Forward& a) {
  detail::refuse_forward_mode(kName, {a.query, a.key, a.value, a.beta});
  const auto r = WindowAttention::apply(a.query, a.key, a.value, a.beta, a);
  return {r[0], r[1], r[2]};
}

template <auto kernel>
constexpr auto* forward_call = &detail::Packed<Forward, kernel, ForwardSignature>::call;
template <auto kernel>
constexpr auto* backward_call = &detail::Packed<Backward, kernel, BackwardSignature>::call;

// ---- the public op: heads of one scale at a time ----

/// The arguments of attention_sh besides its tensors, defaults settled.
struct Settings {
  bool bn, count_weighting;
  std::string_view tail;
  c10::SymInt num_special;
  double beta_value;
  bool use_std;
  double eps;
  bool is_causal;
  c10::SymInt query_offset;
  double dropout_p, scale;
};

/// A boolean mask over tokens as one over windows: true where all valid tokens of a window are.
Tensor pool_mask(const Tensor& mask, const OptionalTensor& padding, const c10::SymInt& window,
                 const Settings& s) {
  auto hidden = mask.dim() == 2 ? mask.logical_not().unsqueeze(0).unsqueeze(0) : mask.logical_not();
  if (padding) hidden = hidden.logical_and(padding->logical_not().unsqueeze(1).unsqueeze(1));
  const auto share =
      token_pool(hidden.transpose(-1, -2).to(at::kFloat), window, {}, "avg", s.tail, s.num_special);
  return (std::get<0>(share) == 0).transpose(-1, -2);
}

/// Attention of all heads of one scale to their windows.
Tensor attend_windows(const detail::HeadGroup& g, const OptionalTensor& padding,
                      const Settings& s) {
  const auto [key, count] = token_pool(g.key, g.scale, padding, "avg", s.tail, s.num_special);
  const auto value =
      std::get<0>(token_pool(g.value, g.scale, padding, "avg", s.tail, s.num_special));
  OptionalTensor empty, weight, mask;
  if (padding) empty = count == 0;
  if (s.count_weighting) weight = count;
  if (g.attn_mask) mask = pool_mask(*g.attn_mask, padding, g.scale, s);
  return attention_bn(g.query, key, value, g.beta, empty, mask, weight, s.beta_value, s.use_std,
                      s.eps, "global", false, {}, s.dropout_p, s.scale, true);
}

Tensor attend_group(const detail::HeadGroup& g, const OptionalTensor& padding, const Settings& s) {
  if (g.scale == 1)
    return attention_bn(g.query, g.key, g.value, g.beta, padding, g.attn_mask, {}, s.beta_value,
                        s.use_std, s.eps, "auto", s.is_causal, s.query_offset, s.dropout_p, s.scale,
                        true);
  if (!s.is_causal) return attend_windows(g, padding, s);
  const bool needs_probabilities = g.attn_mask || s.query_offset != 0 ||
                                   g.query.sym_size(2) != g.key.sym_size(2) || s.dropout_p > 0;
  if (needs_probabilities)
    return attention_sh_ref(g.query, g.key, g.value, {g.scale}, s.bn ? g.beta : OptionalTensor(),
                            padding, g.attn_mask, s.bn, s.count_weighting, s.tail, s.num_special,
                            s.bn ? s.beta_value : 1.0, s.use_std, s.eps, true, s.query_offset,
                            s.dropout_p, s.scale, true);
  return std::get<0>(forward_op().call(g.query, g.key, g.value, g.beta, padding, {g.scale},
                                       s.num_special, s.tail, s.count_weighting, s.bn, s.beta_value,
                                       s.use_std, s.eps, true, s.scale));
}

/// Whether the op takes the heads of all scales at once: where the core is chosen, there is no M x
/// N mask, and whole heads keep threads busy, being many or short. The shape alone decides, never
/// the number of threads; symbolic sizes count as many.
bool takes_all_scales(const detail::HeadTensors& heads, at::IntArrayRef scales, const Settings& s) {
  constexpr int64_t kManyHeads = 16, kShort = 512;
  const auto size = [](const Tensor& t, int64_t dim, int64_t otherwise) {
    return t.sym_size(dim).maybe_as_int().value_or(otherwise);
  };
  const bool is_narrow = size(heads.query, 3, 0) <= csrc::kCoreMaxWidth &&
                         size(heads.value, 3, 0) <= csrc::kCoreMaxWidth;
  const int64_t count = size(heads.key, 0, kManyHeads) * size(heads.key, 1, kManyHeads);
  return !s.is_causal && !heads.attn_mask && s.dropout_p == 0 && heads.query.is_cpu() &&
         is_narrow && detail::forced_backend() != "stock" &&
         (count >= kManyHeads || size(heads.key, 2, kShort) <= kShort) &&
         std::any_of(scales.begin(), scales.end(), [](auto scale) { return scale > 1; });
}

Tensor attention_sh_composite(const Tensor& query, const Tensor& key, const Tensor& value,
                              at::IntArrayRef scales, const OptionalTensor& beta,
                              const OptionalTensor& key_padding_mask,
                              const OptionalTensor& attn_mask, bool bn, bool count_weighting,
                              std::string_view tail, c10::SymInt num_special, double beta_value,
                              bool use_std, double eps, bool is_causal,
                              std::optional<c10::SymInt> query_offset, double dropout_p,
                              std::optional<double> scale, bool enable_gqa) {
  const detail::AttentionArguments arguments{query,     key,   value, beta,      key_padding_mask,
                                             attn_mask, kNone, eps,   dropout_p, enable_gqa};
  const auto settled = detail::settle_attention(kName, arguments, beta_value, "auto", is_causal,
                                                query_offset, scale);
  detail::check_scales(kName, arguments, scales, tail, num_special);
  // Without bn: softmax attention, which is Attention-BN with beta 0 and no division.
  const Settings s{bn,
                   count_weighting,
                   tail,
                   num_special,
                   bn ? beta_value : 0.0,
                   bn && use_std,
                   eps,
                   is_causal,
                   settled.query_offset,
                   dropout_p,
                   settled.scale};
  const detail::HeadTensors heads{query, key, value, bn ? beta : OptionalTensor(), attn_mask};
  if (takes_all_scales(heads, scales, s))
    return std::get<0>(forward_op().call(query, key, value, heads.beta, key_padding_mask, scales,
                                         s.num_special, s.tail, s.count_weighting, s.bn,
                                         s.beta_value, s.use_std, s.eps, false, s.scale));
  return detail::for_each_scale(scales, heads, [&](const detail::HeadGroup& g) {
    return attend_group(g, key_padding_mask, s);
  });
}

template <c10::DeviceType device, c10::DispatchKey key_to_exclude>
Tensor attention_sh_autocast(const Tensor& query, const Tensor& key, const Tensor& value,
                             at::IntArrayRef scales, const OptionalTensor& beta,
                             const OptionalTensor& key_padding_mask,
                             const OptionalTensor& attn_mask, bool bn, bool count_weighting,
                             std::string_view tail, c10::SymInt num_special, double beta_value,
                             bool use_std, double eps, bool is_causal,
                             std::optional<c10::SymInt> query_offset, double dropout_p,
                             std::optional<double> scale, bool enable_gqa) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(key_to_exclude);
  const auto type = at::autocast::get_autocast_dtype(device);
  const auto cast = [](at::ScalarType to, const auto& t) {
    return at::autocast::cached_cast(to, t, device);
  };
  return attention_sh(cast(type, query), cast(type, key), cast(type, value), scales,
                      cast(at::kFloat, beta), key_padding_mask, cast(at::kFloat, attn_mask), bn,
                      count_weighting, tail, num_special, beta_value, use_std, eps, is_causal,
                      query_offset, dropout_p, scale, enable_gqa);
}

using PublicSignature = Tensor(const Tensor& query, const Tensor& key, const Tensor& value,
                               at::IntArrayRef scales, const OptionalTensor& beta,
                               const OptionalTensor& key_padding_mask,
                               const OptionalTensor& attn_mask, bool bn, bool count_weighting,
                               std::string_view tail, c10::SymInt num_special, double beta_value,
                               bool use_std, double eps, bool is_causal,
                               std::optional<c10::SymInt> query_offset, double dropout_p,
                               std::optional<double> scale, bool enable_gqa);

}  // namespace

Tensor attention_sh(const Tensor& query, const Tensor& key, const Tensor& value,
                    at::IntArrayRef scales, const OptionalTensor& beta,
                    const OptionalTensor& key_padding_mask, const OptionalTensor& attn_mask,
                    bool bn, bool count_weighting, std::string_view tail,
                    const c10::SymInt& num_special, double beta_value, bool use_std, double eps,
                    bool is_causal, std::optional<c10::SymInt> query_offset, double dropout_p,
                    std::optional<double> scale, bool enable_gqa) {
  static const auto op = detail::op_handle<PublicSignature>("kktorch::attention_sh");
  return op.call(query, key, value, scales, beta, key_padding_mask, attn_mask, bn, count_weighting,
                 tail, num_special, beta_value, use_std, eps, is_causal, query_offset, dropout_p,
                 scale, enable_gqa);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "attention_sh(Tensor query, Tensor key, Tensor value, int[] scales, Tensor? beta=None, "
      "Tensor? key_padding_mask=None, Tensor? attn_mask=None, *, bool bn=False, "
      "bool count_weighting=False, str tail=\"ceil\", SymInt num_special=0, float beta_value=1.0, "
      "bool use_std=True, float eps=1e-05, bool is_causal=False, SymInt? query_offset=None, "
      "float dropout_p=0.0, float? scale=None, bool enable_gqa=False) -> Tensor",
      tags);
  m.def(
      "_attention_sh_forward(Tensor query, Tensor key, Tensor value, Tensor? beta, "
      "Tensor? key_padding_mask, int[] scales, SymInt num_special, str tail, bool count_weighting, "
      "bool bn, float beta_value, bool use_std, float eps, bool is_causal, float scale) -> "
      "(Tensor out, Tensor logsumexp, Tensor stats_saved)",
      tags);
  m.def(
      "_attention_sh_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, "
      "Tensor? beta, Tensor? key_padding_mask, Tensor out, Tensor logsumexp, Tensor stats_saved, "
      "int[] scales, SymInt num_special, str tail, bool count_weighting, bool bn, "
      "float beta_value, bool use_std, float eps, bool is_causal, float scale) -> "
      "(Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_beta)",
      tags);
}
TORCH_LIBRARY_IMPL(kktorch, CompositeImplicitAutograd, m) {
  m.impl("attention_sh", &attention_sh_composite);
}
TORCH_LIBRARY_IMPL(kktorch, CPU, m) {
  m.impl("_attention_sh_forward", forward_call<forward_kernel>);
  m.impl("_attention_sh_backward", backward_call<backward_kernel>);
}
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) {
  m.impl("_attention_sh_forward", forward_call<forward_kernel>);
  m.impl("_attention_sh_backward", backward_call<backward_kernel>);
}
TORCH_LIBRARY_IMPL(kktorch, Meta, m) {
  m.impl("_attention_sh_forward", forward_call<forward_meta>);
  m.impl("_attention_sh_backward", backward_call<backward_meta>);
}
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  m.impl("_attention_sh_forward", forward_call<forward_autograd>);
  m.impl("_attention_sh_backward",
         torch::CppFunction::makeFromBoxedFunction<&detail::refuse_double_backward>());
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCPU, m) {
  m.impl("attention_sh", &attention_sh_autocast<at::kCPU, c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCUDA, m) {
  m.impl("attention_sh", &attention_sh_autocast<at::kCUDA, c10::DispatchKey::AutocastCUDA>);
}

}  // namespace kktorch
