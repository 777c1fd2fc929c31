#include "ops/group_soft_threshold.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "csrc/convex/rows.h"
#include "ops/attention/normalise.h"
#include "ops/convex/row_tensors.h"
#include "ops/convex/rows_cuda.h"

namespace kktorch {
namespace {

using at::Tensor;
using TwoTensors = std::tuple<Tensor, Tensor>;

constexpr std::string_view kName = "group_soft_threshold";

const auto& backward_op() {
  using Signature = TwoTensors(const Tensor& grad, const Tensor& u, const Tensor& tau, int64_t);
  static const auto op = detail::op_handle<Signature>("kktorch::_group_soft_threshold_backward");
  return op;
}

// ---- checks ----

void check(const Tensor& u, const Tensor& tau, int64_t group_ndim) {
  detail::check_rows_dtype(kName, "u", u);
  TORCH_CHECK_VALUE(group_ndim >= 1 && group_ndim <= u.dim(), kName,
                    ": expected 1 <= group_ndim <= ", u.dim(), ", but got ", group_ndim);
  const auto groups = u.sym_sizes().slice(0, u.dim() - group_ndim);
  TORCH_CHECK((tau.dim() == 0 || tau.sym_sizes() == groups) && tau.is_floating_point() &&
                  tau.device() == u.device(),
              kName, ": expected tau floating, a scalar or of shape ", groups, " on ", u.device(),
              ", but got ", tau.scalar_type(), " ", tau.sym_sizes(), " on ", tau.device());
}

void check_like(const Tensor& grad, const Tensor& u) {
  TORCH_CHECK(grad.sym_sizes() == u.sym_sizes() && grad.scalar_type() == u.scalar_type() &&
                  grad.device() == u.device(),
              kName, ": expected grad like u, ", u.scalar_type(), " ", u.sym_sizes(), " on ",
              u.device(), ", but got ", grad.scalar_type(), " ", grad.sym_sizes(), " on ",
              grad.device());
}

// ---- Meta ----

Tensor shrink_meta(const Tensor& u, const Tensor& tau, int64_t group_ndim) {
  check(u, tau, group_ndim);
  return at::empty_symint(u.sym_sizes(), u.options());
}

TwoTensors backward_meta(const Tensor& grad, const Tensor& u, const Tensor& tau,
                         int64_t group_ndim) {
  check(u, tau, group_ndim);
  check_like(grad, u);
  return {at::empty_symint(u.sym_sizes(), u.options()),
          at::empty_symint(tau.sym_sizes(), tau.options())};
}

// ---- CPU ----

struct Groups {
  int64_t count, size;
};

Groups groups_of(const Tensor& u, int64_t group_ndim) {
  int64_t count = 1, size = 1;
  for (int64_t i = 0; i < u.dim(); ++i) (i < u.dim() - group_ndim ? count : size) *= u.size(i);
  return {count, size};
}

/// tau in float64, >= 0.
Tensor checked_tau(const Tensor& tau) {
  const auto t = tau.to(at::kDouble).contiguous();
  const double* values = t.const_data_ptr<double>();
  for (int64_t i = 0; i < t.numel(); ++i)
    TORCH_CHECK_VALUE(values[i] >= 0, kName, ": expected tau >= 0, but got ", values[i]);
  return t;
}

Tensor shrink_cpu(const Tensor& u, const Tensor& tau, int64_t group_ndim) {
  check(u, tau, group_ndim);
  const auto t = checked_tau(tau), x = u.contiguous();
  const auto z = at::empty(u.sizes(), u.options());
  const auto [count, size] = groups_of(u, group_ndim);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, u.scalar_type(), "group_soft_threshold", [&] {
        const int64_t n = size, stride = tau.dim() > 0;
        const auto* from = x.const_data_ptr<scalar_t>();
        auto* to = z.mutable_data_ptr<scalar_t>();
        const double* threshold = t.const_data_ptr<double>();
        detail::for_row_runs<csrc::acc_t<scalar_t>>(
            count, n, 2 * n, [&](int64_t first, int64_t rows, auto* scratch) {
              csrc::row_kernels<scalar_t>().shrink({from + first * n, n},
                                                   threshold + first * stride, stride, rows, n,
                                                   {to + first * n, n}, scratch);
            });
      });
  return z;
}

TwoTensors backward_cpu(const Tensor& grad, const Tensor& u, const Tensor& tau,
                        int64_t group_ndim) {
  check(u, tau, group_ndim);
  check_like(grad, u);
  const auto t = checked_tau(tau), x = u.contiguous(), g = grad.contiguous();
  const auto grad_u = at::empty(u.sizes(), u.options());
  const auto [count, size] = groups_of(u, group_ndim);
  const auto along = at::empty({count}, t.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, u.scalar_type(), "group_soft_threshold", [&] {
        const int64_t n = size, stride = tau.dim() > 0;
        const auto *from = x.const_data_ptr<scalar_t>(), *grads = g.const_data_ptr<scalar_t>();
        auto* to = grad_u.mutable_data_ptr<scalar_t>();
        double* grad_tau = along.mutable_data_ptr<double>();
        detail::for_row_runs<csrc::acc_t<scalar_t>>(
            count, n, 3 * n, [&](int64_t first, int64_t rows, auto* scratch) {
              csrc::row_kernels<scalar_t>().shrink_backward(
                  {grads + first * n, n}, {from + first * n, n},
                  t.const_data_ptr<double>() + first * stride, stride, rows, n, {to + first * n, n},
                  grad_tau + first, scratch);
            });
      });
  const auto grad_tau = tau.dim() > 0 ? along.view(tau.sizes()) : along.sum();
  return {grad_u, grad_tau.to(tau.scalar_type())};
}

// ---- CUDA: compositions ----

/// u as [groups.., size] in float64, its norms, and tau in the shape of the norms.
struct Wide {
  Tensor u, norm, tau, alive;

  Wide(const Tensor& groups, const Tensor& threshold, int64_t group_ndim)
      : u(groups.flatten(groups.dim() - group_ndim, -1).to(at::kDouble)),
        norm(u.square().sum(-1, true).sqrt()),
        tau(threshold.to(at::kDouble).unsqueeze(-1)),
        alive((norm <= tau).logical_not()) {}
};

Tensor shrink_aten(const Tensor& u, const Tensor& tau, int64_t group_ndim) {
  check(u, tau, group_ndim);
  const Wide w(u, tau, group_ndim);
  const auto z = at::where(w.alive, w.u * (1 - w.tau / w.norm), 0);
  return z.view(u.sizes()).to(u.scalar_type());
}

/// The kernel with KKTORCH_EXPERIMENTAL_CUDA=1, otherwise the composition.
Tensor shrink_cuda(const Tensor& u, const Tensor& tau, int64_t group_ndim) {
#ifdef KKTORCH_WITH_CUDA
  if (detail::use_cuda_kernels()) {
    check(u, tau, group_ndim);
    const auto dense = u.contiguous(), threshold = tau.to(at::kDouble).contiguous();
    auto z = at::empty(u.sizes(), u.options());
    int64_t size = 1;
    for (int64_t j = u.dim() - group_ndim; j < u.dim(); ++j) size *= u.size(j);
    if (u.numel() > 0)
      detail::shrink_rows_cuda(dense.view({-1, size}), threshold, z.view({-1, size}));
    return z;
  }
#endif
  return shrink_aten(u, tau, group_ndim);
}

TwoTensors backward_aten(const Tensor& grad, const Tensor& u, const Tensor& tau,
                         int64_t group_ndim) {
  check(u, tau, group_ndim);
  check_like(grad, u);
  const Wide w(u, tau, group_ndim);
  const auto g = grad.reshape(w.u.sizes()).to(at::kDouble);
  const auto share = w.tau / w.norm, e = w.u / w.norm, along = (e * g).sum(-1, true);
  const auto grad_u = at::where(w.alive, (1 - share) * g + share * along * e, 0);
  const auto grad_tau = at::where(w.alive, -along, 0).squeeze(-1);
  return {grad_u.view(u.sizes()).to(u.scalar_type()),
          (tau.dim() > 0 ? grad_tau : grad_tau.sum()).to(tau.scalar_type())};
}

// ---- Autograd, Autocast ----

struct GroupSoftThreshold : torch::autograd::Function<GroupSoftThreshold> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& u, const Tensor& tau,
                        int64_t group_ndim) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({u, tau});
    ctx->saved_data["group_ndim"] = group_ndim;
    return group_soft_threshold(u, tau, group_ndim);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto t = ctx->get_saved_variables();
    auto [u, tau] = backward_op().call(grads[0], t[0], t[1], ctx->saved_data["group_ndim"].toInt());
    return {ctx->needs_input_grad(0) ? u : Tensor(), ctx->needs_input_grad(1) ? tau : Tensor(),
            Tensor()};
  }
};

Tensor shrink_autograd(const Tensor& u, const Tensor& tau, int64_t group_ndim) {
  detail::refuse_forward_mode(kName, {u, tau});
  return GroupSoftThreshold::apply(u, tau, group_ndim);
}

template <c10::DeviceType device, c10::DispatchKey key_to_exclude>
Tensor shrink_autocast(const Tensor& u, const Tensor& tau, int64_t group_ndim) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(key_to_exclude);
  const auto wide = [](const Tensor& t) {
    return at::autocast::cached_cast(at::kFloat, t, device);
  };
  return group_soft_threshold(wide(u), wide(tau), group_ndim);
}

}  // namespace

Tensor group_soft_threshold(const Tensor& u, const Tensor& tau, int64_t group_ndim) {
  static const auto op =
      detail::op_handle<decltype(group_soft_threshold)>("kktorch::group_soft_threshold");
  return op.call(u, tau, group_ndim);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("group_soft_threshold(Tensor u, Tensor tau, *, int group_ndim=1) -> Tensor", tags);
  m.def(
      "_group_soft_threshold_backward(Tensor grad, Tensor u, Tensor tau, int group_ndim) -> "
      "(Tensor grad_u, Tensor grad_tau)",
      tags);
}
TORCH_LIBRARY_IMPL(kktorch, CPU, m) {
  m.impl("group_soft_threshold", &shrink_cpu);
  m.impl("_group_soft_threshold_backward", &backward_cpu);
}
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) {
  m.impl("group_soft_threshold", &shrink_cuda);
  m.impl("_group_soft_threshold_backward", &backward_aten);
}
TORCH_LIBRARY_IMPL(kktorch, Meta, m) {
  m.impl("group_soft_threshold", &shrink_meta);
  m.impl("_group_soft_threshold_backward", &backward_meta);
}
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  m.impl("group_soft_threshold", &shrink_autograd);
  m.impl("_group_soft_threshold_backward",
         torch::CppFunction::makeFromBoxedFunction<&detail::refuse_double_backward>());
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCPU, m) {
  m.impl("group_soft_threshold", &shrink_autocast<at::kCPU, c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCUDA, m) {
  m.impl("group_soft_threshold", &shrink_autocast<at::kCUDA, c10::DispatchKey::AutocastCUDA>);
}

}  // namespace kktorch
