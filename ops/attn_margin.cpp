#include "ops/attn_margin.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/segment_reduce.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "ops/common/registration.h"
#include "ops/svm/token_rows.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr std::string_view kName = "attn_margin";
constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Signature = MarginTensors(const Tensor& x, const Tensor& y, const Tensor& row_ptr,
                                const OptionalTensor& tok, const OptionalTensor& alpha,
                                double scale);

struct Arguments {
  const Tensor &x, &y, &row_ptr;
  const OptionalTensor &tok, &alpha;
  double scale;

  detail::TokenSetTensors sets() const { return {kName, x, row_ptr, tok}; }
};

void check(const Arguments& a) {
  const auto sets = a.sets();
  detail::check_token_sets(sets);
  TORCH_CHECK(
      a.y.dim() == 2 && a.y.sym_size(0) == sets.queries() && a.y.sym_size(1) == a.x.sym_size(1) &&
          a.y.is_floating_point() && a.y.device() == a.x.device(),
      kName, ": expected y floating [", sets.queries(), ", ", a.x.sym_size(1), "] on ",
      a.x.device(), ", but got ", a.y.scalar_type(), " ", a.y.sym_sizes(), " on ", a.y.device());
  if (a.alpha) detail::check_selection(sets, *a.alpha);
  TORCH_CHECK_VALUE(a.scale > 0 && std::isfinite(a.scale), kName,
                    ": expected a finite scale > 0, but got ", a.scale);
}

MarginTensors margin_meta(const Arguments& a) {
  check(a);
  const auto queries = a.sets().queries(), entries = a.sets().entries();
  const auto numbers = a.x.options().dtype(at::kDouble), places = a.row_ptr.options();
  const auto per_query = [&] { return at::empty_symint({queries}, numbers); };
  return {at::empty_symint({entries}, numbers),
          at::empty_symint({queries}, places),
          per_query(),
          at::empty_symint({queries}, places),
          per_query(),
          per_query(),
          per_query()};
}

MarginTensors margin_cpu(const Arguments& a) {
  auto results = margin_meta(a);
  detail::check_token_values(a.sets(), a.alpha);
  const auto x = a.x.contiguous(), y = a.y.to(at::kDouble).contiguous(),
             row_ptr = a.row_ptr.contiguous();
  const auto tok = a.tok ? OptionalTensor(a.tok->contiguous()) : std::nullopt;
  const auto alpha = a.alpha ? a.alpha->contiguous() : Tensor();
  const auto numbers = [](const Tensor& t) { return t.mutable_data_ptr<double>(); };
  const auto places = [](const Tensor& t) { return t.mutable_data_ptr<int64_t>(); };
  const csrc::MarginOutputs out{numbers(std::get<0>(results)), places(std::get<1>(results)),
                                numbers(std::get<2>(results)), places(std::get<3>(results)),
                                numbers(std::get<4>(results)), numbers(std::get<5>(results)),
                                numbers(std::get<6>(results))};
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "attn_margin", [&] {
    const auto& kernels = csrc::tracker_kernels<scalar_t>();
    const auto sets = detail::token_sets_view<scalar_t>(x, row_ptr, tok);
    const auto* given = alpha.defined() ? alpha.const_data_ptr<int64_t>() : nullptr;
    detail::for_each_query_range(row_ptr, x.size(1), [&](int64_t first, int64_t last) {
      kernels.margins(sets, y.const_data_ptr<double>(), given, a.scale, first, last, out);
    });
  });
  return results;
}

// ---- a composition of ATen ops: CUDA ----

/// Reduces [nnz] over the sets to [Q]; every set has an entry.
Tensor over_sets(const Tensor& values, const char* reduce, const Tensor& row_ptr) {
  return at::segment_reduce(values, reduce, /*lengths=*/row_ptr.diff(), /*indices=*/{},
                            /*offsets=*/{}, /*axis=*/0, /*unsafe=*/true);
}

MarginTensors margin_aten(const Arguments& a) {
  check(a);
  const auto sets = a.sets();
  const auto query = detail::query_of_entries(sets);
  const auto rows = detail::rows_of_entries(sets).to(at::kDouble);
  const auto logit = (rows * a.y.to(at::kDouble).index_select(0, query)).sum(1);
  const auto place = at::arange(logit.size(0), a.row_ptr.options()) - a.row_ptr.index({query});
  // Positions are exact in float64.
  const auto first_place = [&](const Tensor& where) {
    const auto candidates = at::where(where, place.to(at::kDouble), kInfinity);
    return over_sets(candidates, "min", a.row_ptr);
  };
  const auto finite = over_sets(logit.isfinite().to(at::kDouble), "min", a.row_ptr) > 0;
  const auto top = over_sets(logit.nan_to_num(), "max", a.row_ptr);
  const auto largest = first_place(logit == top.index_select(0, query));
  const auto alpha = a.alpha ? a.alpha->clone() : at::where(finite, largest, 0.0).to(at::kLong);
  const auto margin =
      logit.index_select(0, a.row_ptr.slice(0, 0, -1) + alpha).index_select(0, query) - logit;
  const auto others =
      at::where(place == alpha.index_select(0, query), kInfinity, margin.nan_to_num());
  const auto least = over_sets(others, "min", a.row_ptr);
  const auto least_place =
      first_place((others == least.index_select(0, query)).logical_and(others.isfinite()));
  const auto shifted = a.scale * (logit - top.index_select(0, query));
  const auto weight = shifted.exp();
  const auto total = over_sets(weight, "sum", a.row_ptr);
  const auto entropy = total.log() - over_sets(weight * shifted, "sum", a.row_ptr) / total;
  const auto undefined = finite.logical_not();
  const auto known = [&](const Tensor& t) { return t.masked_fill(undefined, NAN); };
  return {margin.masked_fill(undefined.index_select(0, query), NAN),
          alpha,
          known(least),
          at::where(least_place.isfinite().logical_and(finite), least_place, -1.0).to(at::kLong),
          known(total.reciprocal()),
          known(entropy),
          known(over_sets(rows.square().sum(1), "max", a.row_ptr).sqrt())};
}

template <auto kernel>
constexpr auto* call = &detail::Packed<Arguments, kernel, Signature>::call;

}  // namespace

MarginTensors attn_margin(const Tensor& x, const Tensor& y, const Tensor& row_ptr,
                          const OptionalTensor& tok, const OptionalTensor& alpha, double scale) {
  static const auto op = detail::op_handle<Signature>("kktorch::attn_margin");
  return op.call(x, y, row_ptr, tok, alpha, scale);
}

MarginTensors detail::attn_margin_aten(const Tensor& x, const Tensor& y, const Tensor& row_ptr,
                                       const OptionalTensor& tok, const OptionalTensor& alpha,
                                       double scale) {
  return margin_aten({x, y, row_ptr, tok, alpha, scale});
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  m.def(
      "attn_margin(Tensor x, Tensor y, Tensor row_ptr, *, Tensor? tok=None, Tensor? alpha=None, "
      "float scale=1.0) -> (Tensor margin, Tensor alpha, Tensor qmin, Tensor qarg, Tensor smax, "
      "Tensor entropy, Tensor xmax)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(kktorch, CPU, m) { m.impl("attn_margin", call<margin_cpu>); }
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) { m.impl("attn_margin", call<margin_aten>); }
TORCH_LIBRARY_IMPL(kktorch, Meta, m) { m.impl("attn_margin", call<margin_meta>); }
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  m.impl("attn_margin", torch::CppFunction::makeFromBoxedFunction<&detail::not_differentiable>());
}

}  // namespace kktorch
