#include "ops/project_ball.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include "ops/common/registration.h"
#include "ops/dynamics/checks.h"

namespace kktorch {
namespace {

using at::Tensor;
using TwoTensors = std::tuple<Tensor, Tensor>;

void check(const Tensor& p, const Tensor& center, double radius) {
  constexpr auto kName = "project_ball";
  detail::check_single_or_double(kName, "p", p);
  TORCH_CHECK(p.dim() >= 1, kName, ": expected p [m, ...], but got a number");
  TORCH_CHECK(p.sym_sizes() == center.sym_sizes() && p.scalar_type() == center.scalar_type() &&
                  p.device() == center.device(),
              kName, ": expected center ", p.scalar_type(), " ", p.sym_sizes(), " on ", p.device(),
              ", but got ", center.scalar_type(), " ", center.sym_sizes(), " on ", center.device());
  TORCH_CHECK_VALUE(radius >= 0, kName, ": expected radius >= 0, but got ", radius);
}

TwoTensors project_meta(const Tensor& p, const Tensor& center, double radius) {
  check(p, center, radius);
  return {at::empty_symint(p.sym_sizes(), p.options()),
          at::empty_symint({p.sym_size(0)}, p.options().dtype(at::kBool))};
}

TwoTensors project(const Tensor& p, const Tensor& center, double radius) {
  check(p, center, radius);
  const auto offset = p - center;
  const auto squares = offset.square().reshape({p.size(0), -1}).sum(1);
  const auto norm = squares.sqrt(), moved = norm > radius;
  auto sizes = std::vector<int64_t>(p.dim(), 1);
  sizes[0] = p.size(0);
  const auto shrunk = center + offset * (radius / norm).view(sizes);
  return {at::where(moved.view(sizes), shrunk, p).contiguous(), moved};
}

}  // namespace

TwoTensors project_ball(const Tensor& p, const Tensor& center, double radius) {
  static const auto op = detail::op_handle<decltype(project)>("kktorch::project_ball");
  return op.call(p, center, radius);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def("project_ball(Tensor p, Tensor center, float radius) -> (Tensor projected, Tensor moved)",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(kktorch, CPU, m) { m.impl("project_ball", &project); }
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) { m.impl("project_ball", &project); }
TORCH_LIBRARY_IMPL(kktorch, Meta, m) { m.impl("project_ball", &project_meta); }
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  m.impl("project_ball",
         torch::CppFunction::makeFromBoxedFunction<&detail::refuse_differentiation>());
}

}  // namespace kktorch
