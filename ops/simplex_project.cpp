#include "ops/simplex_project.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/WrapDimUtils.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/convex/rows.h"
#include "ops/attention/normalise.h"
#include "ops/convex/row_tensors.h"
#include "ops/convex/rows_cuda.h"

namespace kktorch {
namespace {

using at::Tensor;

constexpr std::string_view kName = "simplex_project";

const auto& backward_op() {
  using Signature = Tensor(const Tensor& grad, const Tensor& w, int64_t dim);
  static const auto op = detail::op_handle<Signature>("kktorch::_simplex_project_backward");
  return op;
}

// ---- checks and shapes ----

void check(const Tensor& v, double radius, int64_t dim) {
  detail::check_rows_dtype(kName, "v", v);
  TORCH_CHECK(v.dim() >= 1, kName, ": expected v with a dimension, but got a scalar");
  dim = at::maybe_wrap_dim(dim, v.dim());
  TORCH_CHECK_VALUE(v.sym_size(dim) > 0, kName, ": expected a dimension ", dim,
                    " that is not empty, but got v of shape ", v.sym_sizes());
  TORCH_CHECK_VALUE(std::isfinite(radius) && radius > 0, kName,
                    ": expected finite radius > 0, but got ", radius);
}

void check_backward(const Tensor& grad, const Tensor& w, int64_t dim) {
  check(w, 1, dim);
  TORCH_CHECK(grad.sym_sizes() == w.sym_sizes() && grad.scalar_type() == w.scalar_type() &&
                  grad.device() == w.device(),
              kName, ": expected grad like w, ", w.scalar_type(), " ", w.sym_sizes(), " on ",
              w.device(), ", but got ", grad.scalar_type(), " ", grad.sym_sizes(), " on ",
              grad.device());
}

// ---- Meta ----

/// Slices contiguous and side by side, seen in the shape of `like`.
Tensor empty_slices(const Tensor& like, int64_t dim) {
  const auto moved = like.movedim(dim, -1);
  return at::empty_symint(moved.sym_sizes(), like.options()).movedim(-1, dim);
}

Tensor project_meta(const Tensor& v, double radius, int64_t dim) {
  check(v, radius, dim);
  return empty_slices(v, dim);
}

Tensor backward_meta(const Tensor& grad, const Tensor& w, int64_t dim) {
  check_backward(grad, w, dim);
  return empty_slices(w, dim);
}

// ---- CPU ----

Tensor project_cpu(const Tensor& v, double radius, int64_t dim) {
  check(v, radius, dim);
  const auto slices = v.movedim(dim, -1).contiguous();
  const auto result = empty_slices(v, dim), rows = result.movedim(dim, -1);
  const int64_t size = v.size(dim);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, v.scalar_type(), "simplex_project", [&] {
        const auto& kernels = csrc::row_kernels<scalar_t>();
        const auto* from = slices.const_data_ptr<scalar_t>();
        auto* to = rows.mutable_data_ptr<scalar_t>();
        detail::for_row_runs<csrc::acc_t<scalar_t>>(
            v.numel() / size, size, csrc::simplex_scratch(size),
            [&](int64_t first, int64_t count, auto* scratch) {
              kernels.simplex_project({from + first * size, size}, count, size, radius,
                                      {to + first * size, size}, scratch);
            });
      });
  return result;
}

Tensor backward_cpu(const Tensor& grad, const Tensor& w, int64_t dim) {
  check_backward(grad, w, dim);
  const auto g = grad.movedim(dim, -1).contiguous(), slices = w.movedim(dim, -1).contiguous();
  const auto result = empty_slices(w, dim), rows = result.movedim(dim, -1);
  const int64_t size = w.size(dim);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, w.scalar_type(), "simplex_project", [&] {
        const auto& kernels = csrc::row_kernels<scalar_t>();
        const auto *from = g.const_data_ptr<scalar_t>(),
                   *weight = slices.const_data_ptr<scalar_t>();
        auto* to = rows.mutable_data_ptr<scalar_t>();
        detail::for_row_runs<csrc::acc_t<scalar_t>>(
            w.numel() / size, size, 3 * size, [&](int64_t first, int64_t count, auto* scratch) {
              kernels.simplex_backward({from + first * size, size}, {weight + first * size, size},
                                       count, size, {to + first * size, size}, scratch);
            });
      });
  return result;
}

// ---- CUDA: a composition with a sort, sums in float64, no synchronisation ----

Tensor project_aten(const Tensor& v, double radius, int64_t dim) {
  check(v, radius, dim);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto x = v.movedim(dim, -1).to(at::kDouble);
  const auto top = x.amax(-1, true);
  const auto y = x - top;
  const auto sorted = std::get<0>(y.sort(-1, true));
  const auto finite = at::where(sorted == -kInfinity, 0, sorted);
  const auto number = at::arange(1, y.size(-1) + 1, y.options());
  const auto threshold = (finite.cumsum(-1) - radius) / number;
  const auto tau = at::where(sorted > threshold, threshold, -kInfinity).amax(-1, true);
  const auto w = (y - tau).clamp_min(0);
  auto result = empty_slices(v, dim);
  result.movedim(dim, -1).copy_(at::where(top.isfinite(), w, std::nan("")));
  return result;
}

/// The kernel with KKTORCH_EXPERIMENTAL_CUDA=1, otherwise the composition.
Tensor project_cuda(const Tensor& v, double radius, int64_t dim) {
#ifdef KKTORCH_WITH_CUDA
  if (detail::use_cuda_kernels()) {
    check(v, radius, dim);
    const auto slices = v.movedim(dim, -1).contiguous(), result = empty_slices(v, dim);
    const std::vector<int64_t> rows = {-1, v.size(dim)};
    if (v.numel() > 0)
      detail::project_rows_cuda(slices.view(rows), radius, result.movedim(dim, -1).view(rows));
    return result;
  }
#endif
  return project_aten(v, radius, dim);
}

Tensor backward_aten(const Tensor& grad, const Tensor& w, int64_t dim) {
  check_backward(grad, w, dim);
  const auto inside = w > 0;
  const auto g = grad.to(at::kDouble).masked_fill(inside.logical_not(), 0);
  const auto mean = g.sum(dim, true) / inside.sum(dim, true).clamp_min(1);
  auto result = empty_slices(w, dim);
  result.copy_((g - mean).masked_fill(inside.logical_not(), 0));
  return result;
}

// ---- Autograd, Autocast ----

struct SimplexProject : torch::autograd::Function<SimplexProject> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& v, double radius,
                        int64_t dim) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto w = simplex_project(v, radius, dim);
    ctx->save_for_backward({w});
    ctx->saved_data["dim"] = dim;
    return w;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto w = ctx->get_saved_variables()[0];
    return {backward_op().call(grads[0], w, ctx->saved_data["dim"].toInt()), Tensor(), Tensor()};
  }
};

Tensor project_autograd(const Tensor& v, double radius, int64_t dim) {
  detail::refuse_forward_mode(kName, {v});
  return SimplexProject::apply(v, radius, dim);
}

template <c10::DeviceType device, c10::DispatchKey key_to_exclude>
Tensor project_autocast(const Tensor& v, double radius, int64_t dim) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(key_to_exclude);
  return simplex_project(at::autocast::cached_cast(at::kFloat, v, device), radius, dim);
}

}  // namespace

Tensor simplex_project(const Tensor& v, double radius, int64_t dim) {
  static const auto op = detail::op_handle<decltype(simplex_project)>("kktorch::simplex_project");
  return op.call(v, radius, dim);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("simplex_project(Tensor v, *, float radius=1.0, int dim=-1) -> Tensor", tags);
  m.def("_simplex_project_backward(Tensor grad, Tensor w, int dim) -> Tensor", tags);
}
TORCH_LIBRARY_IMPL(kktorch, CPU, m) {
  m.impl("simplex_project", &project_cpu);
  m.impl("_simplex_project_backward", &backward_cpu);
}
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) {
  m.impl("simplex_project", &project_cuda);
  m.impl("_simplex_project_backward", &backward_aten);
}
TORCH_LIBRARY_IMPL(kktorch, Meta, m) {
  m.impl("simplex_project", &project_meta);
  m.impl("_simplex_project_backward", &backward_meta);
}
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  m.impl("simplex_project", &project_autograd);
  m.impl("_simplex_project_backward",
         torch::CppFunction::makeFromBoxedFunction<&detail::refuse_double_backward>());
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCPU, m) {
  m.impl("simplex_project", &project_autocast<at::kCPU, c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(kktorch, AutocastCUDA, m) {
  m.impl("simplex_project", &project_autocast<at::kCUDA, c10::DispatchKey::AutocastCUDA>);
}

}  // namespace kktorch
