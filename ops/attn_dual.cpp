#include "ops/attn_dual.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/segment_reduce.h>
#include <torch/library.h>

#include "csrc/svm/dense.h"
#include "ops/common/registration.h"
#include "ops/svm/token_rows.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using TwoTensors = std::tuple<Tensor, Tensor>;

constexpr std::string_view kName = "attn_dual";

using Signature = TwoTensors(const Tensor& x, const Tensor& z, const Tensor& row_ptr,
                             const Tensor& alpha, const Tensor& q, const OptionalTensor& tok);

struct Arguments {
  const Tensor &x, &z, &row_ptr, &alpha, &q;
  const OptionalTensor& tok;

  detail::TokenSetTensors sets() const { return {kName, x, row_ptr, tok}; }
};

void check(const Arguments& a) {
  const auto sets = a.sets();
  detail::check_token_sets(sets);
  TORCH_CHECK(a.z.dim() == 2 && a.z.sym_size(0) == sets.queries() && a.z.is_floating_point() &&
                  a.z.device() == a.x.device(),
              kName, ": expected z floating [", sets.queries(), ", dz] on ", a.x.device(),
              ", but got ", a.z.scalar_type(), " ", a.z.sym_sizes(), " on ", a.z.device());
  detail::check_selection(sets, a.alpha);
  TORCH_CHECK(a.q.dim() == 1 && a.q.sym_size(0) == sets.entries() && a.q.is_floating_point() &&
                  a.q.device() == a.x.device(),
              kName, ": expected q floating [", sets.entries(), "] on ", a.x.device(), ", but got ",
              a.q.scalar_type(), " ", a.q.sym_sizes(), " on ", a.q.device());
}

TwoTensors dual_meta(const Arguments& a) {
  check(a);
  const auto numbers = a.x.options().dtype(at::kDouble);
  return {at::empty_symint({a.x.sym_size(1), a.z.sym_size(1)}, numbers),
          at::empty_symint({a.sets().queries()}, numbers)};
}

TwoTensors dual_cpu(const Arguments& a) {
  auto [M, mass] = dual_meta(a);
  detail::check_token_values(a.sets(), a.alpha);
  const auto x = a.x.contiguous(), row_ptr = a.row_ptr.contiguous(), alpha = a.alpha.contiguous();
  const auto q = a.q.to(at::kDouble).contiguous();
  const auto tok = a.tok ? OptionalTensor(a.tok->contiguous()) : std::nullopt;
  const auto u = at::empty({mass.size(0), x.size(1)}, M.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "attn_dual", [&] {
    const auto& kernels = csrc::tracker_kernels<scalar_t>();
    const auto sets = detail::token_sets_view<scalar_t>(x, row_ptr, tok);
    detail::for_each_query_range(row_ptr, x.size(1), [&](int64_t first, int64_t last) {
      kernels.dual(sets, alpha.const_data_ptr<int64_t>(), q.const_data_ptr<double>(), first, last,
                   u.mutable_data_ptr<double>(), mass.mutable_data_ptr<double>());
    });
  });
  // M = U^T Z; unlike at::mm it does not depend on the number of threads.
  const auto z = a.z.to(at::kDouble).contiguous();
  M.zero_();
  csrc::gemm(M.size(0), M.size(1), mass.size(0), 1,
             csrc::row_major(u.const_data_ptr<double>(), u.size(1)).transposed(),
             csrc::row_major(z.const_data_ptr<double>(), z.size(1)), M.mutable_data_ptr<double>(),
             M.size(1));
  return {M, mass};
}

TwoTensors dual_aten(const Arguments& a) {
  check(a);
  const auto sets = a.sets();
  const auto query = detail::query_of_entries(sets);
  const auto rows = detail::rows_of_entries(sets).to(at::kDouble);
  const auto selected = a.row_ptr.slice(0, 0, -1) + a.alpha;
  const auto lam = a.q.to(at::kDouble).clamp_min(0).index_fill(0, selected, 0);
  const auto differences = rows.index_select(0, selected).index_select(0, query) - rows;
  const auto over_sets = [&](const Tensor& values) {
    return at::segment_reduce(values, "sum", /*lengths=*/a.row_ptr.diff(), /*indices=*/{},
                              /*offsets=*/{}, /*axis=*/0, /*unsafe=*/true);
  };
  const auto u = over_sets(lam.unsqueeze(1) * differences);
  return {at::mm(u.t(), a.z.to(at::kDouble)), over_sets(lam)};
}

template <auto kernel>
constexpr auto* call = &detail::Packed<Arguments, kernel, Signature>::call;

}  // namespace

TwoTensors attn_dual(const Tensor& x, const Tensor& z, const Tensor& row_ptr, const Tensor& alpha,
                     const Tensor& q, const OptionalTensor& tok) {
  static const auto op = detail::op_handle<Signature>("kktorch::attn_dual");
  return op.call(x, z, row_ptr, alpha, q, tok);
}

TwoTensors detail::attn_dual_aten(const Tensor& x, const Tensor& z, const Tensor& row_ptr,
                                  const Tensor& alpha, const Tensor& q, const OptionalTensor& tok) {
  return dual_aten({x, z, row_ptr, alpha, q, tok});
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def(
      "attn_dual(Tensor x, Tensor z, Tensor row_ptr, Tensor alpha, Tensor q, *, Tensor? tok=None) "
      "-> (Tensor M, Tensor mass)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(kktorch, CPU, m) { m.impl("attn_dual", call<dual_cpu>); }
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) { m.impl("attn_dual", call<dual_aten>); }
TORCH_LIBRARY_IMPL(kktorch, Meta, m) { m.impl("attn_dual", call<dual_meta>); }
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  m.impl("attn_dual", torch::CppFunction::makeFromBoxedFunction<&detail::not_differentiable>());
}

}  // namespace kktorch
