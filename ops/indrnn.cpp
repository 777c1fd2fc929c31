#include "ops/indrnn.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cmath>

#include "ops/common/registration.h"
#include "ops/dynamics/activation.h"
#include "ops/dynamics/checks.h"

namespace kktorch {
namespace {

using at::Tensor;
using LossAndGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr auto kName = "indrnn";

void check(const Tensor& X, const Tensor& w, const Tensor& u, std::string_view act) {
  detail::check_single_or_double(kName, "X", X);
  TORCH_CHECK(X.dim() == 3 && u.dim() == 2, kName, ": expected X [n, T, d] and u [m, d], but got ",
              X.sym_sizes(), " and ", u.sym_sizes());
  const auto n = X.sym_size(0), T = X.sym_size(1), d = X.sym_size(2), m = u.sym_size(0);
  TORCH_CHECK_VALUE(n >= 1 && T >= 1 && d >= 1 && m >= 1, kName,
                    ": expected n, T, d, m >= 1, but got ", n, ", ", T, ", ", d, ", ", m);
  detail::check_like(kName, "u", u, X, {m, d});
  detail::check_like(kName, "w", w, X, {m});
  detail::activation_of(kName, act);
}

double root(const Tensor& u) { return std::sqrt(static_cast<double>(u.size(0))); }

Tensor forward(const Tensor& X, const Tensor& w, const Tensor& u, const Tensor& c,
               std::string_view act) {
  check(X, w, u, act);
  detail::check_like(kName, "c", c, X, {u.sym_size(0)});
  const auto inputs = at::matmul(X, u.t());  // [n, T, m]
  Tensor h;
  for (int64_t t = 0; t < X.size(1); ++t)
    h = detail::activate(t == 0 ? inputs.select(1, t) : inputs.select(1, t) + w * h, act);
  return (h * c).sum(1) / root(u);
}

LossAndGradients loss_grad_meta(const Tensor& X, const Tensor& y, const Tensor& w, const Tensor& u,
                                const Tensor& c, std::string_view act) {
  check(X, w, u, act);
  detail::check_like(kName, "c", c, X, {u.sym_size(0)});
  detail::check_like(kName, "y", y, X, {X.sym_size(0)});
  const auto empty = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  return {at::empty({}, X.options().dtype(at::kDouble)), empty(y), empty(w), empty(u), empty(c)};
}

LossAndGradients loss_grad(const Tensor& X, const Tensor& y, const Tensor& w, const Tensor& u,
                           const Tensor& c, std::string_view act) {
  loss_grad_meta(X, y, w, u, c, act);
  const int64_t n = X.size(0), T = X.size(1), m = u.size(0);
  const auto inputs = at::matmul(X, u.t());
  const auto states = at::zeros({T + 1, n, m}, X.options());
  for (int64_t t = 0; t < T; ++t)
    states[t + 1].copy_(detail::activate(inputs.select(1, t) + w * states[t], act));
  const auto f = at::matmul(states[T], c) / root(u), residual = f - y;
  const auto r = residual * (2 / (static_cast<double>(n) * root(u)));
  auto delta = r.unsqueeze(1) * c;  // dL/dh_t
  Tensor gw = at::zeros_like(w), gu = at::zeros_like(u);
  for (int64_t t = T; t >= 1; --t) {
    const auto g = delta * detail::slope(states[t], act);
    gw += (g * states[t - 1]).sum(0);
    gu += at::matmul(g.t(), X.select(1, t - 1));
    delta = g * w;
  }
  return {residual.to(at::kDouble).square().mean(), f, gw, gu, at::matmul(r, states[T])};
}

Tensor jac_meta(const Tensor& X, const Tensor& w, const Tensor& u, std::string_view act) {
  check(X, w, u, act);
  return at::empty_symint({X.sym_size(0), u.sym_size(0)}, X.options());
}

Tensor jac(const Tensor& X, const Tensor& w, const Tensor& u, std::string_view act) {
  check(X, w, u, act);
  Tensor h = at::zeros({X.size(0), u.size(0)}, X.options()), e = at::zeros_like(h);
  for (int64_t t = 0; t < X.size(1); ++t) {
    const auto before = h;
    h = detail::activate(at::matmul(X.select(1, t), u.t()) + w * before, act);
    e = detail::slope(h, act) * (before + w * e);
  }
  return e;
}

}  // namespace

Tensor indrnn_forward(const Tensor& X, const Tensor& w, const Tensor& u, const Tensor& c,
                      std::string_view act) {
  return forward(X, w, u, c, act);
}

LossAndGradients indrnn_loss_grad(const Tensor& X, const Tensor& y, const Tensor& w,
                                  const Tensor& u, const Tensor& c, std::string_view act) {
  static const auto op = detail::op_handle<decltype(loss_grad)>("kktorch::indrnn_loss_grad");
  return op.call(X, y, w, u, c, act);
}

Tensor indrnn_jac(const Tensor& X, const Tensor& w, const Tensor& u, std::string_view act) {
  static const auto op = detail::op_handle<decltype(jac)>("kktorch::indrnn_jac");
  return op.call(X, w, u, act);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("indrnn_forward(Tensor X, Tensor w, Tensor u, Tensor c, *, str act=\"tanh\") -> Tensor",
        tags);
  m.def(
      "indrnn_loss_grad(Tensor X, Tensor y, Tensor w, Tensor u, Tensor c, *, str act=\"tanh\") -> "
      "(Tensor loss, Tensor f, Tensor gw, Tensor gu, Tensor gc)",
      tags);
  m.def("indrnn_jac(Tensor X, Tensor w, Tensor u, *, str act=\"tanh\") -> Tensor", tags);
}
TORCH_LIBRARY_IMPL(kktorch, CompositeImplicitAutograd, m) { m.impl("indrnn_forward", &forward); }
TORCH_LIBRARY_IMPL(kktorch, CompositeExplicitAutograd, m) {
  m.impl("indrnn_loss_grad", &loss_grad);
  m.impl("indrnn_jac", &jac);
}
TORCH_LIBRARY_IMPL(kktorch, Meta, m) {
  m.impl("indrnn_loss_grad", &loss_grad_meta);
  m.impl("indrnn_jac", &jac_meta);
}
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  for (const auto* op : {"indrnn_loss_grad", "indrnn_jac"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&detail::refuse_differentiation>());
}

}  // namespace kktorch
