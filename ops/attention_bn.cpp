#include "ops/attention_bn.h"

#include <ATen/OpMathType.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/attention/problem.h"
#include "ops/common/registration.h"

// Backward, global statistics. With q^ = (q - beta mu) r, c^ = (k - mu) r, S = scale q^ c^T + ln n
// + mask, P = softmax(S), o = P v, and n the total of the key weights n_j; per head h of the group
// that shares the key head:
//
//     dv = sum_h P^T do        dP = do v^T        dS = P o (dP - rowsum(do o o))
//     dq^ = scale dS c^        G^h = scale dS^T q^
//     A^h = sum_i dq^_i        T^h = sum_i dq^_i o q^_i
//     dq = r o dq^             dbeta_h = -sum_d mu_d r_d A^h_d
//     dk_j = r o [ sum_h G^h_j - (n_j / n) (sum_h beta_h A^h + [use_std] 2 c^_j o sum_h T^h) ]
//
// The mean inside c^ contributes nothing of its own: the softmax does not feel a shift of all keys.
// Prefix statistics: csrc/attention/bn_prefix.h.

namespace kktorch {
namespace {

using at::Tensor;
using detail::AttentionProblem;
using OptionalTensor = std::optional<Tensor>;

constexpr std::string_view kName = "attention_bn";

using ForwardSignature = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& beta,
    const OptionalTensor& key_padding_mask, const OptionalTensor& attn_mask,
    const OptionalTensor& key_weight, double beta_value, bool use_std, double eps,
    std::string_view stats, bool is_causal, c10::SymInt query_offset, double dropout_p,
    double scale);

struct Forward {  // the arguments of _attention_bn_forward
  const Tensor &query, &key, &value;
  const OptionalTensor &beta, &key_padding_mask, &attn_mask, &key_weight;
  double beta_value;
  bool use_std;
  double eps;
  std::string_view stats;
  bool is_causal;
  c10::SymInt query_offset;
  double dropout_p, scale;
};

using BackwardSignature = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value,
    const OptionalTensor& beta, const OptionalTensor& key_padding_mask,
    const OptionalTensor& attn_mask, const OptionalTensor& key_weight, const Tensor& out,
    const Tensor& logsumexp, const Tensor& stats_saved, const Tensor& rng_state, double beta_value,
    bool use_std, double eps, std::string_view stats, bool is_causal, c10::SymInt query_offset,
    double dropout_p, double scale, std::array<bool, 4> output_mask);

struct Backward {  // the arguments of _attention_bn_backward
  const Tensor &grad_out, &query, &key, &value;
  const OptionalTensor &beta, &key_padding_mask, &attn_mask, &key_weight;
  const Tensor &out, &logsumexp, &stats_saved, &rng_state;
  double beta_value;
  bool use_std;
  double eps;
  std::string_view stats;
  bool is_causal;
  c10::SymInt query_offset;
  double dropout_p, scale;
  std::array<bool, 4> output_mask;
};

using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

const auto& forward_op() {
  static const auto op = detail::op_handle<ForwardSignature>("kktorch::_attention_bn_forward");
  return op;
}

const auto& backward_op() {
  static const auto op = detail::op_handle<BackwardSignature>("kktorch::_attention_bn_backward");
  return op;
}

// ---- the public op: settles defaults and the path ----

// Paths that need the M x N probabilities: the gradient of a mask, statistics per row's support,
// dropout on the CPU.
bool needs_probabilities(const Tensor& query, const OptionalTensor& attn_mask,
                         std::string_view stats, double dropout_p) {
  return (attn_mask && attn_mask->requires_grad()) || stats == "support" ||
         (dropout_p > 0 && query.device().is_cpu());
}

Tensor attention_bn_composite(const Tensor& query, const Tensor& key, const Tensor& value,
                              const OptionalTensor& beta, const OptionalTensor& key_padding_mask,
                              const OptionalTensor& attn_mask, const OptionalTensor& key_weight,
                              double beta_value, bool use_std, double eps, std::string_view stats,
                              bool is_causal, std::optional<c10::SymInt> query_offset,
                              double dropout_p, std::optional<double> scale, bool enable_gqa) {
  const auto settled = detail::settle_attention(kName,
                                                {query, key, value, beta, key_padding_mask,
                                                 attn_mask, key_weight, eps, dropout_p, enable_gqa},
                                                beta_value, stats, is_causal, query_offset, scale);
  if (needs_probabilities(query, attn_mask, settled.stats, dropout_p))
    return attention_bn_ref(query, key, value, beta, key_padding_mask, attn_mask, key_weight,
                            beta_value, use_std, eps, settled.stats, is_causal,
                            settled.query_offset, dropout_p, settled.scale, enable_gqa);
  return std::get<0>(forward_op().call(query, key, value, beta, key_padding_mask, attn_mask,
                                       key_weight, beta_value, use_std, eps, settled.stats,
                                       is_causal, settled.query_offset, dropout_p, settled.scale));
}

// ---- Meta ----

template <typename Arguments>
detail::AttentionArguments shared_arguments(const Arguments& a) {
  return {a.query,     a.key,        a.value, a.beta,      a.key_padding_mask,
          a.attn_mask, a.key_weight, a.eps,   a.dropout_p, true};
}

template <typename Arguments>
void check_private(const Arguments& a) {
  detail::check_attention(kName, shared_arguments(a));
  TORCH_CHECK_NOT_IMPLEMENTED(
      a.stats == "global" || a.stats == "prefix", kName,
      ": expected stats 'global' or 'prefix' below the public op, but got '", a.stats, "'");
}

FourTensors forward_meta(const Forward& a) {
  check_private(a);
  const auto B = a.query.sym_size(0), H = a.query.sym_size(1), M = a.query.sym_size(2);
  const auto acc = a.query.options().dtype(at::toOpMathType(a.query.scalar_type()));
  return {detail::empty_heads_last({B, H, M, a.value.sym_size(3)}, a.query.options()),
          detail::empty_heads_last({B, H, M, 1}, acc).squeeze(-1),
          at::empty_symint({B, a.key.sym_size(1), 3, a.query.sym_size(3)}, acc),
          at::empty({a.dropout_p > 0 ? 2 : 0}, acc.dtype(at::kLong))};
}

void check_backward(const Backward& a) {
  check_private(a);
  TORCH_CHECK(a.grad_out.sym_sizes() == a.out.sym_sizes() &&
                  a.grad_out.scalar_type() == a.out.scalar_type(),
              "_attention_bn_backward: expected grad_out of shape ", a.out.sym_sizes(),
              " and dtype ", a.out.scalar_type(), ", but got ", a.grad_out.sym_sizes(), " and ",
              a.grad_out.scalar_type());
}

FourTensors backward_meta(const Backward& a) {
  check_backward(a);
  const auto like = [](const Tensor& t, bool wanted) {
    return wanted ? detail::empty_heads_last(t.sym_sizes(), t.options())
                  : at::empty({0}, t.options());
  };
  const bool wants_beta = a.beta && a.output_mask[3];
  return {like(a.query, a.output_mask[0]), like(a.key, a.output_mask[1]),
          like(a.value, a.output_mask[2]),
          wants_beta ? at::empty_symint(a.beta->sym_sizes(), a.beta->options())
                     : at::empty({0}, a.query.options())};
}

// ---- CPU and CUDA: state the problem, leave it to a back end ----

template <typename Arguments>
AttentionProblem make_problem(const Arguments& a) {
  const auto acc = a.query.options().dtype(at::toOpMathType(a.query.scalar_type()));
  const int64_t H = a.query.size(1);
  const bool plain = !a.beta && a.beta_value == 0 && !a.use_std;
  return {.query = detail::channels_contiguous(a.query),
          .key = detail::channels_contiguous(a.key),
          .value = detail::channels_contiguous(a.value),
          .beta = a.beta ? a.beta->to(acc.dtype()).expand({H}).contiguous()
                         : at::full({H}, a.beta_value, acc),
          .key_weight = detail::total_key_weight(kName, shared_arguments(a)),
          .attn_mask = a.attn_mask.value_or(Tensor()),
          .eps = a.eps,
          .scale = a.scale,
          .dropout_p = a.dropout_p,
          .use_std = a.use_std,
          .plain = plain,
          .prefix = a.stats == "prefix" && !plain,
          .is_causal = a.is_causal,
          .query_offset = a.query_offset.expect_int()};
}

FourTensors zeroed(FourTensors tensors) {
  std::apply([](auto&... t) { (t.zero_(), ...); }, tensors);
  return tensors;
}

// The results of Meta are made only where they are wanted: memory that is taken and not used would
// be the memory that the next tensors get without page faults.

FourTensors forward_kernel(const Forward& a) {
  check_private(a);
  const auto problem = make_problem(a);
  if (detail::is_trivial(problem)) return zeroed(forward_meta(a));
  const auto result = detail::attention_backend(problem).forward(problem);
  return {result.out, result.logsumexp, result.statistics, result.rng_state};
}

FourTensors backward_kernel(const Backward& a) {
  check_backward(a);
  const auto problem = make_problem(a);
  if (detail::is_trivial(problem)) return zeroed(backward_meta(a));
  const auto grads = detail::attention_backend(problem).backward(
      problem, {a.out, a.logsumexp, a.stats_saved, a.rng_state}, a.grad_out);
  const auto none = [&] { return at::empty({0}, a.query.options()); };
  const auto& wanted = a.output_mask;
  return {wanted[0] ? grads.query : none(), wanted[1] ? grads.key : none(),
          wanted[2] ? grads.value : none(),
          a.beta && wanted[3] ? grads.beta.sum_to_size(a.beta->sizes()).to(a.beta->scalar_type())
                              : none()};
}

// ---- Autograd: dispatcher calls only, so compile and export can trace it ----

struct AttentionBN : torch::autograd::Function<AttentionBN> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& query, const Tensor& key,
                                                const Tensor& value, const OptionalTensor& beta,
                                                const Forward& a) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [out, logsumexp, statistics, rng_state] = forward_op().call(
        query, key, value, beta, a.key_padding_mask, a.attn_mask, a.key_weight, a.beta_value,
        a.use_std, a.eps, a.stats, a.is_causal, a.query_offset, a.dropout_p, a.scale);
    ctx->save_for_backward({query, key, value, beta.value_or(Tensor()),
                            a.key_padding_mask.value_or(Tensor()), a.attn_mask.value_or(Tensor()),
                            a.key_weight.value_or(Tensor()), out, logsumexp, statistics,
                            rng_state});
    ctx->mark_non_differentiable({logsumexp, statistics, rng_state});
    ctx->set_materialize_grads(false);
    auto& saved = ctx->saved_data;
    saved["beta_value"] = a.beta_value;
    saved["use_std"] = a.use_std;
    saved["eps"] = a.eps;
    saved["stats"] = std::string(a.stats);
    saved["is_causal"] = a.is_causal;
    saved["query_offset"] = a.query_offset;
    saved["dropout_p"] = a.dropout_p;
    saved["scale"] = a.scale;
    return {out, logsumexp, statistics, rng_state};
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
    const auto beta = optional(3);
    const std::array<bool, 4> needed = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        ctx->needs_input_grad(2),
                                        beta.has_value() && ctx->needs_input_grad(3)};
    const auto stats = saved["stats"].toStringRef();
    const auto [query, key, value, grad_beta] = backward_op().call(
        grads[0], t[0], t[1], t[2], beta, optional(4), optional(5), optional(6), t[7], t[8], t[9],
        t[10], saved["beta_value"].toDouble(), saved["use_std"].toBool(), saved["eps"].toDouble(),
        stats, saved["is_causal"].toBool(), saved["query_offset"].toSymInt(),
        saved["dropout_p"].toDouble(), saved["scale"].toDouble(), needed);
    if (needed[0]) result[0] = query;
    if (needed[1]) result[1] = key;
    if (needed[2]) result[2] = value;
    if (needed[3]) result[3] = grad_beta;
    return result;
  }
};

FourTensors forward_autograd(const Forward& a) {
  detail::refuse_forward_mode(kName, {a.query, a.key, a.value, a.beta});
  TORCH_CHECK_NOT_IMPLEMENTED(!a.attn_mask || !a.attn_mask->requires_grad(), kName,
                              ": the gradient of attn_mask is that of the public op, not of "
                              "_attention_bn_forward");
  const auto r = AttentionBN::apply(a.query, a.key, a.value, a.beta, a);
  return {r[0], r[1], r[2], r[3]};
}

template <auto kernel>
constexpr auto* forward_call = &detail::Packed<Forward, kernel, ForwardSignature>::call;
template <auto kernel>
constexpr auto* backward_call = &detail::Packed<Backward, kernel, BackwardSignature>::call;

// ---- Autocast: like scaled_dot_product_attention; what enters the statistics stays in float32
// ----

template <c10::DeviceType device, c10::DispatchKey key_to_exclude>
Tensor attention_bn_autocast(const Tensor& query, const Tensor& key, const Tensor& value,
                             const OptionalTensor& beta, const OptionalTensor& key_padding_mask,
                             const OptionalTensor& attn_mask, const OptionalTensor& key_weight,
                             double beta_value, bool use_std, double eps, std::string_view stats,
                             bool is_causal, std::optional<c10::SymInt> query_offset,
                             double dropout_p, std::optional<double> scale, bool enable_gqa) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(key_to_exclude);
  const auto type = at::autocast::get_autocast_dtype(device);
  const auto cast = [](at::ScalarType to, const auto& t) {
    return at::autocast::cached_cast(to, t, device);
  };
  return attention_bn(cast(type, query), cast(type, key), cast(type, value), cast(at::kFloat, beta),
                      key_padding_mask, cast(at::kFloat, attn_mask), cast(at::kFloat, key_weight),
                      beta_value, use_std, eps, stats, is_causal, query_offset, dropout_p, scale,
                      enable_gqa);
}

}  // namespace

// The public function only calls the dispatcher: every caller gets autograd, autocast and Meta
// alike.
Tensor attention_bn(const Tensor& query, const Tensor& key, const Tensor& value,
                    const OptionalTensor& beta, const OptionalTensor& key_padding_mask,
                    const OptionalTensor& attn_mask, const OptionalTensor& key_weight,
                    double beta_value, bool use_std, double eps, std::string_view stats,
                    bool is_causal, std::optional<c10::SymInt> query_offset, double dropout_p,
                    std::optional<double> scale, bool enable_gqa) {
  static const auto op = detail::op_handle<decltype(attention_bn)>("kktorch::attention_bn");
  return op.call(query, key, value, beta, key_padding_mask, attn_mask, key_weight, beta_value,
                 use_std, eps, stats, is_causal, query_offset, dropout_p, scale, enable_gqa);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "attention_bn(Tensor query, Tensor key, Tensor value, Tensor? beta=None, "
      "Tensor? key_padding_mask=None, Tensor? attn_mask=None, *, Tensor? key_weight=None, "
      "float beta_value=1.0, bool use_std=True, float eps=1e-05, str stats=\"auto\", "
      "bool is_causal=False, SymInt? query_offset=None, float dropout_p=0.0, float? scale=None, "
      "bool enable_gqa=False) -> Tensor",
      tags);
  m.def(
      "_attention_bn_forward(Tensor query, Tensor key, Tensor value, Tensor? beta, "
      "Tensor? key_padding_mask, Tensor? attn_mask, Tensor? key_weight, float beta_value, "
      "bool use_std, float eps, str stats, bool is_causal, SymInt query_offset, float dropout_p, "
      "float scale) -> (Tensor out, Tensor logsumexp, Tensor stats_saved, Tensor rng_state)",
      tags);
  m.def(
      "_attention_bn_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, "
      "Tensor? beta, Tensor? key_padding_mask, Tensor? attn_mask, Tensor? key_weight, Tensor out, "
      "Tensor logsumexp, Tensor stats_saved, Tensor rng_state, float beta_value, bool use_std, "
      "float eps, str stats, bool is_causal, SymInt query_offset, float dropout_p, float scale, "
      "bool[4] output_mask) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, "
      "Tensor grad_beta)",
      tags);
}
TORCH_LIBRARY_IMPL(kktorch, CompositeImplicitAutograd, m) {
  m.impl("attention_bn", &attention_bn_composite);
}
TORCH_LIBRARY_IMPL(kktorch, CPU, m) {
  m.impl("_attention_bn_forward", forward_call<forward_kernel>);
  m.impl("_attention_bn_backward", backward_call<backward_kernel>);
}
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) {
  m.impl("_attention_bn_forward", forward_call<forward_kernel>);
  m.impl("_attention_bn_backward", backward_call<backward_kernel>);
}
TORCH_LIBRARY_IMPL(kktorch, Meta, m) {
  m.impl("_attention_bn_forward", forward_call<forward_meta>);
  m.impl("_attention_bn_backward", backward_call<backward_meta>);
}
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  m.impl("_attention_bn_forward", forward_call<forward_autograd>);
  m.impl("_attention_bn_backward",
         torch::CppFunction::makeFromBoxedFunction<&detail::refuse_double_backward>());
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCPU, m) {
  m.impl("attention_bn", &attention_bn_autocast<at::kCPU, c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCUDA, m) {
  m.impl("attention_bn", &attention_bn_autocast<at::kCUDA, c10::DispatchKey::AutocastCUDA>);
}

}  // namespace kktorch
