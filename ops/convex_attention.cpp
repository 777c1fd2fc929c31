#include "ops/convex_attention.h"

#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>

#include "ops/convex/row_tensors.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::string_view kPooled = "convex_attention", kSequence = "convex_attention_seq",
                           kPredict = "convex_predict";

using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using TwoTensors = std::tuple<Tensor, Tensor>;

const auto& pooled_backward_op() {
  using Signature = FourTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                const Tensor&, const OptionalTensor&, const OptionalTensor&);
  static const auto op = detail::op_handle<Signature>("kktorch::_convex_attention_backward");
  return op;
}
const auto& sequence_backward_op() {
  using Signature =
      FourTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&);
  static const auto op = detail::op_handle<Signature>("kktorch::_convex_attention_seq_backward");
  return op;
}
const auto& predict_backward_op() {
  using Signature = TwoTensors(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&);
  static const auto op = detail::op_handle<Signature>("kktorch::_convex_predict_backward");
  return op;
}

// ---- checks ----

void check_alike(std::string_view op, const Tensor& X, std::initializer_list<Tensor> others) {
  detail::check_rows_dtype(op, "X", X);
  TORCH_CHECK(X.dim() == 3 && X.sym_size(1) >= 1 && X.sym_size(2) >= 1, op,
              ": expected X of shape [N, n, d] with n, d >= 1, but got ", X.sym_sizes());
  for (const auto& t : others)
    TORCH_CHECK(t.scalar_type() == X.scalar_type() && t.device() == X.device(), op,
                ": expected one device and one dtype for all tensors, but got ", X.scalar_type(),
                " on ", X.device(), " and ", t.scalar_type(), " on ", t.device());
}

void check_gate(std::string_view op, const Tensor& X, const OptionalTensor& gate) {
  if (!gate) return;
  TORCH_CHECK(
      gate->dim() == 2 && gate->sym_size(0) == X.sym_size(0) && gate->device() == X.device(), op,
      ": expected gate of shape [N, P] with entries 0 or 1, N = ", X.sym_size(0), ", but got ",
      gate->sym_sizes(), " on ", gate->device());
}

void check_pooled(const Tensor& X, const Tensor& w1, const Tensor& w2, const Tensor& w3,
                  const OptionalTensor& gate, const OptionalTensor& gate_id) {
  check_alike(kPooled, X, {w1, w2, w3});
  TORCH_CHECK(w1.dim() == 2 && w2.dim() == 2 && w3.dim() == 2 && w1.sym_size(1) == X.sym_size(1) &&
                  w2.sym_size(1) == X.sym_size(2) && w1.sym_size(0) == w2.sym_size(0) &&
                  w1.sym_size(0) == w3.sym_size(0),
              kPooled, ": expected w1 [h, ", X.sym_size(1), "], w2 [h, ", X.sym_size(2),
              "], w3 [h, c], but got ", w1.sym_sizes(), ", ", w2.sym_sizes(), ", ", w3.sym_sizes());
  check_gate(kPooled, X, gate);
  if (gate_id) {
    TORCH_CHECK(gate.has_value() && gate_id->scalar_type() == at::kLong && gate_id->dim() == 1 &&
                    gate_id->sym_size(0) == w1.sym_size(0) && gate_id->device() == X.device(),
                kPooled, ": expected gate_id int64 [h] with values in [0, P) and a gate, h = ",
                w1.sym_size(0), ", but got ", gate_id->scalar_type(), " ", gate_id->sym_sizes(),
                gate ? "" : " without gate");
  } else if (gate) {
    TORCH_CHECK(gate->sym_size(1) == w1.sym_size(0), kPooled,
                ": expected P == h without gate_id, but got P = ", gate->sym_size(1),
                ", h = ", w1.sym_size(0));
  }
}

void check_sequence(const Tensor& X, const Tensor& W1, const Tensor& W2, const Tensor& w3) {
  check_alike(kSequence, X, {W1, W2, w3});
  const auto n = X.sym_size(1);
  TORCH_CHECK(W1.dim() == 3 && W2.dim() == 3 && w3.dim() == 1 && W1.sym_size(1) == n &&
                  W1.sym_size(2) == n && W2.sym_size(1) == X.sym_size(2) &&
                  W1.sym_size(0) == W2.sym_size(0) && W1.sym_size(0) == w3.sym_size(0),
              kSequence, ": expected W1 [h, ", n, ", ", n, "], W2 [h, ", X.sym_size(2),
              ", c], w3 [h], but got ", W1.sym_sizes(), ", ", W2.sym_sizes(), ", ", w3.sym_sizes());
}

void check_predict(const Tensor& X, const Tensor& Z, const OptionalTensor& gate) {
  check_alike(kPredict, X, {Z});
  TORCH_CHECK(Z.dim() == 4 && Z.sym_size(2) == X.sym_size(1) && Z.sym_size(3) == X.sym_size(2),
              kPredict, ": expected Z [P, c, ", X.sym_size(1), ", ", X.sym_size(2), "], but got ",
              Z.sym_sizes());
  check_gate(kPredict, X, gate);
  const auto P = gate ? gate->sym_size(1) : c10::SymInt(1);
  TORCH_CHECK(Z.sym_size(0) == P, kPredict, ": expected Z with P = ", P, " gates, but got ",
              Z.sym_sizes());
}

void check_grad(std::string_view op, const Tensor& grad, const Tensor& X,
                c10::SymIntArrayRef sizes) {
  TORCH_CHECK(grad.sym_sizes() == sizes && grad.scalar_type() == X.scalar_type() &&
                  grad.device() == X.device(),
              op, ": expected grad ", X.scalar_type(), " ", sizes, " on ", X.device(), ", but got ",
              grad.scalar_type(), " ", grad.sym_sizes(), " on ", grad.device());
}

// ---- kernels: compositions, in the accumulation type ----

Tensor wide(const Tensor& t) { return t.to(at::toOpMathType(t.scalar_type())); }

Tensor rounded(const Tensor& t, const Tensor& like) {
  return t.to(like.scalar_type()).contiguous();
}

/// w1_j w2_j' of every head, [h, n d].
Tensor head_features(const Tensor& w1, const Tensor& w2) {
  return (w1.unsqueeze(2) * w2.unsqueeze(1)).flatten(1);
}

/// The gate of every head, [N, h].
Tensor gate_of_heads(const Tensor& gate, const OptionalTensor& gate_id, at::ScalarType type) {
  return (gate_id ? gate.index_select(1, *gate_id) : gate).to(type);
}

Tensor pooled_forward(const Tensor& X, const Tensor& w1, const Tensor& w2, const Tensor& w3,
                      const OptionalTensor& gate, const OptionalTensor& gate_id) {
  check_pooled(X, w1, w2, w3, gate, gate_id);
  const auto x = wide(X);
  auto S = x.flatten(1).matmul(head_features(wide(w1), wide(w2)).t());
  if (gate) S = S * gate_of_heads(*gate, gate_id, S.scalar_type());
  return rounded(S.matmul(wide(w3)), X);
}

/// With C_j = sum_i dS_ij X_i:  dw1_jk = <C_jk, w2_j>,  dw2_j = sum_k w1_jk C_jk.
FourTensors pooled_backward(const Tensor& grad, const Tensor& X, const Tensor& w1, const Tensor& w2,
                            const Tensor& w3, const OptionalTensor& gate,
                            const OptionalTensor& gate_id) {
  check_pooled(X, w1, w2, w3, gate, gate_id);
  check_grad(kPooled, grad, X, c10::SymDimVector{X.sym_size(0), w3.sym_size(1)});
  const auto x = wide(X), a = wide(w1), b = wide(w2), dA = wide(grad), phi = x.flatten(1);
  const auto heads = head_features(a, b);
  auto S = phi.matmul(heads.t()), dS = dA.matmul(wide(w3).t());
  if (gate) {
    const auto open = gate_of_heads(*gate, gate_id, S.scalar_type());
    S = S * open;
    dS = dS * open;
  }
  const auto C = dS.t().matmul(phi).view_symint({a.sym_size(0), x.sym_size(1), x.sym_size(2)});
  return {rounded(dS.matmul(heads).view_symint(X.sym_sizes()), X),
          rounded((C * b.unsqueeze(1)).sum(2), X), rounded((C * a.unsqueeze(2)).sum(1), X),
          rounded(S.t().matmul(dA), X)};
}

/// What the sequence form and its gradient share: B = X W2 for every head, [N, n h, c].
struct SequenceParts {
  Tensor x, values, scaled, mixing;

  SequenceParts(const Tensor& X, const Tensor& W1, const Tensor& W2, const Tensor& w3)
      : x(wide(X)) {
    const auto N = X.sym_size(0), n = X.sym_size(1), h = W1.sym_size(0), c = W2.sym_size(2);
    const auto projection = wide(W2).permute({1, 0, 2}).reshape_symint({X.sym_size(2), h * c});
    values = x.matmul(projection).view_symint({N, n, h, c});
    scaled = (values * wide(w3).view({-1, 1})).flatten(1, 2);
    mixing = wide(W1).permute({1, 2, 0}).flatten(1);  // [r, (k, j)]
  }
};

Tensor sequence_forward(const Tensor& X, const Tensor& W1, const Tensor& W2, const Tensor& w3) {
  check_sequence(X, W1, W2, w3);
  const SequenceParts p(X, W1, W2, w3);
  return rounded(p.mixing.matmul(p.scaled), X);
}

FourTensors sequence_backward(const Tensor& grad, const Tensor& X, const Tensor& W1,
                              const Tensor& W2, const Tensor& w3) {
  check_sequence(X, W1, W2, w3);
  const auto N = X.sym_size(0), n = X.sym_size(1), d = X.sym_size(2), h = W1.sym_size(0),
             c = W2.sym_size(2);
  check_grad(kSequence, grad, X, c10::SymDimVector{N, n, c});
  const SequenceParts p(X, W1, W2, w3);
  const auto dA = wide(grad), weight = wide(w3).view({-1, 1});
  const auto dscaled = p.mixing.t().matmul(dA).view_symint({N, n, h, c});
  const auto dvalues = dscaled * weight;
  const auto dmixing = dA.transpose(0, 1)
                           .reshape_symint({n, N * c})
                           .matmul(p.scaled.permute({0, 2, 1}).reshape_symint({N * c, n * h}));
  const auto dW2 =
      p.x.reshape_symint({N * n, d}).t().matmul(dvalues.reshape_symint({N * n, h * c}));
  const auto back = wide(W2).permute({0, 2, 1}).reshape_symint({h * c, d});
  return {rounded(dvalues.reshape_symint({N, n, h * c}).matmul(back), X),
          rounded(dmixing.view_symint({n, n, h}).permute({2, 0, 1}), X),
          rounded(dW2.view_symint({d, h, c}).permute({1, 0, 2}), X),
          rounded((dscaled * p.values).sum({0, 1, 3}), X)};
}

Tensor predict_forward(const Tensor& X, const Tensor& Z, const OptionalTensor& gate) {
  check_predict(X, Z, gate);
  const auto P = Z.sym_size(0), c = Z.sym_size(1);
  auto A = wide(X).flatten(1).matmul(wide(Z).reshape_symint({P * c, -1}).t());
  if (gate)
    A = (A.view_symint({X.sym_size(0), P, c}) * gate->to(A.scalar_type()).unsqueeze(2)).sum(1);
  return rounded(A, X);
}

TwoTensors predict_backward(const Tensor& grad, const Tensor& X, const Tensor& Z,
                            const OptionalTensor& gate) {
  check_predict(X, Z, gate);
  const auto P = Z.sym_size(0), c = Z.sym_size(1), N = X.sym_size(0);
  check_grad(kPredict, grad, X, c10::SymDimVector{N, c});
  auto dA = wide(grad);
  if (gate)
    dA = (dA.unsqueeze(1) * gate->to(dA.scalar_type()).unsqueeze(2)).reshape_symint({N, P * c});
  const auto phi = wide(X).flatten(1), z = wide(Z).reshape_symint({P * c, -1});
  return {rounded(dA.matmul(z).view_symint(X.sym_sizes()), X),
          rounded(dA.t().matmul(phi).view_symint(Z.sym_sizes()), X)};
}

// ---- Autograd ----

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

struct Pooled : torch::autograd::Function<Pooled> {
  static Tensor forward(AutogradContext* ctx, const Tensor& X, const Tensor& w1, const Tensor& w2,
                        const Tensor& w3, const OptionalTensor& gate,
                        const OptionalTensor& gate_id) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({X, w1, w2, w3, gate.value_or(Tensor()), gate_id.value_or(Tensor())});
    return convex_attention(X, w1, w2, w3, gate, gate_id);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto t = ctx->get_saved_variables();
    auto [X, w1, w2, w3] =
        pooled_backward_op().call(grads[0], t[0], t[1], t[2], t[3], optional(t[4]), optional(t[5]));
    return {X, w1, w2, w3, Tensor(), Tensor()};
  }
};

struct Sequence : torch::autograd::Function<Sequence> {
  static Tensor forward(AutogradContext* ctx, const Tensor& X, const Tensor& W1, const Tensor& W2,
                        const Tensor& w3) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({X, W1, W2, w3});
    return convex_attention_seq(X, W1, W2, w3);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto t = ctx->get_saved_variables();
    auto [X, W1, W2, w3] = sequence_backward_op().call(grads[0], t[0], t[1], t[2], t[3]);
    return {X, W1, W2, w3};
  }
};

struct Predict : torch::autograd::Function<Predict> {
  static Tensor forward(AutogradContext* ctx, const Tensor& X, const Tensor& Z,
                        const OptionalTensor& gate) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({X, Z, gate.value_or(Tensor())});
    return convex_predict(X, Z, gate);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto t = ctx->get_saved_variables();
    auto [X, Z] = predict_backward_op().call(grads[0], t[0], t[1], optional(t[2]));
    return {X, Z, Tensor()};
  }
};

Tensor pooled_autograd(const Tensor& X, const Tensor& w1, const Tensor& w2, const Tensor& w3,
                       const OptionalTensor& gate, const OptionalTensor& gate_id) {
  detail::refuse_forward_mode(kPooled, {X, w1, w2, w3});
  return Pooled::apply(X, w1, w2, w3, gate, gate_id);
}
Tensor sequence_autograd(const Tensor& X, const Tensor& W1, const Tensor& W2, const Tensor& w3) {
  detail::refuse_forward_mode(kSequence, {X, W1, W2, w3});
  return Sequence::apply(X, W1, W2, w3);
}
Tensor predict_autograd(const Tensor& X, const Tensor& Z, const OptionalTensor& gate) {
  detail::refuse_forward_mode(kPredict, {X, Z});
  return Predict::apply(X, Z, gate);
}

// ---- Autocast: in the type of autocast ----

template <c10::DeviceType device>
Tensor narrow(const Tensor& t) {
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
}

template <c10::DeviceType device, c10::DispatchKey key_to_exclude>
Tensor pooled_autocast(const Tensor& X, const Tensor& w1, const Tensor& w2, const Tensor& w3,
                       const OptionalTensor& gate, const OptionalTensor& gate_id) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(key_to_exclude);
  return convex_attention(narrow<device>(X), narrow<device>(w1), narrow<device>(w2),
                          narrow<device>(w3), gate, gate_id);
}
template <c10::DeviceType device, c10::DispatchKey key_to_exclude>
Tensor sequence_autocast(const Tensor& X, const Tensor& W1, const Tensor& W2, const Tensor& w3) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(key_to_exclude);
  return convex_attention_seq(narrow<device>(X), narrow<device>(W1), narrow<device>(W2),
                              narrow<device>(w3));
}
template <c10::DeviceType device, c10::DispatchKey key_to_exclude>
Tensor predict_autocast(const Tensor& X, const Tensor& Z, const OptionalTensor& gate) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(key_to_exclude);
  return convex_predict(narrow<device>(X), narrow<device>(Z), gate);
}

}  // namespace

Tensor convex_attention(const Tensor& X, const Tensor& w1, const Tensor& w2, const Tensor& w3,
                        const OptionalTensor& gate, const OptionalTensor& gate_id) {
  static const auto op = detail::op_handle<decltype(convex_attention)>("kktorch::convex_attention");
  return op.call(X, w1, w2, w3, gate, gate_id);
}

Tensor convex_attention_seq(const Tensor& X, const Tensor& W1, const Tensor& W2, const Tensor& w3) {
  static const auto op =
      detail::op_handle<decltype(convex_attention_seq)>("kktorch::convex_attention_seq");
  return op.call(X, W1, W2, w3);
}

Tensor convex_predict(const Tensor& X, const Tensor& Z, const OptionalTensor& gate) {
  static const auto op = detail::op_handle<decltype(convex_predict)>("kktorch::convex_predict");
  return op.call(X, Z, gate);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "convex_attention(Tensor X, Tensor w1, Tensor w2, Tensor w3, *, Tensor? gate=None, "
      "Tensor? gate_id=None) -> Tensor",
      tags);
  m.def("convex_attention_seq(Tensor X, Tensor W1, Tensor W2, Tensor w3) -> Tensor", tags);
  m.def("convex_predict(Tensor X, Tensor Z, *, Tensor? gate=None) -> Tensor", tags);
  m.def(
      "_convex_attention_backward(Tensor grad, Tensor X, Tensor w1, Tensor w2, Tensor w3, "
      "Tensor? gate, Tensor? gate_id) -> "
      "(Tensor grad_X, Tensor grad_w1, Tensor grad_w2, Tensor grad_w3)",
      tags);
  m.def(
      "_convex_attention_seq_backward(Tensor grad, Tensor X, Tensor W1, Tensor W2, Tensor w3) -> "
      "(Tensor grad_X, Tensor grad_W1, Tensor grad_W2, Tensor grad_w3)",
      tags);
  m.def(
      "_convex_predict_backward(Tensor grad, Tensor X, Tensor Z, Tensor? gate) -> "
      "(Tensor grad_X, Tensor grad_Z)",
      tags);
}
// Compositions: one kernel for CPU, CUDA and Meta.
TORCH_LIBRARY_IMPL(kktorch, CompositeExplicitAutograd, m) {
  m.impl("convex_attention", &pooled_forward);
  m.impl("convex_attention_seq", &sequence_forward);
  m.impl("convex_predict", &predict_forward);
  m.impl("_convex_attention_backward", &pooled_backward);
  m.impl("_convex_attention_seq_backward", &sequence_backward);
  m.impl("_convex_predict_backward", &predict_backward);
}
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  m.impl("convex_attention", &pooled_autograd);
  m.impl("convex_attention_seq", &sequence_autograd);
  m.impl("convex_predict", &predict_autograd);
  for (const char* name :
       {"_convex_attention_backward", "_convex_attention_seq_backward", "_convex_predict_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&detail::refuse_double_backward>());
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCPU, m) {
  constexpr auto key = c10::DispatchKey::AutocastCPU;
  m.impl("convex_attention", &pooled_autocast<at::kCPU, key>);
  m.impl("convex_attention_seq", &sequence_autocast<at::kCPU, key>);
  m.impl("convex_predict", &predict_autocast<at::kCPU, key>);
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCUDA, m) {
  constexpr auto key = c10::DispatchKey::AutocastCUDA;
  m.impl("convex_attention", &pooled_autocast<at::kCUDA, key>);
  m.impl("convex_attention_seq", &sequence_autocast<at::kCUDA, key>);
  m.impl("convex_predict", &predict_autocast<at::kCUDA, key>);
}

}  // namespace kktorch
