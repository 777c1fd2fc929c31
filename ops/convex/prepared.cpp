#include "ops/convex/prepared.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

namespace kktorch::detail {
namespace {

using at::Tensor;
using csrc::PenaltyKind;

PenaltyKind penalty_of(std::string_view function, const std::string& name) {
  if (name == "group") return PenaltyKind::kGroup;
  if (name == "nuclear") return PenaltyKind::kNuclear;
  if (name == "sequence") return PenaltyKind::kSequence;
  if (name == "substochastic") return PenaltyKind::kSubstochastic;
  TORCH_CHECK_VALUE(false, function,
                    ": expected penalty one of group, nuclear, sequence, substochastic, but got ",
                    name);
}

void check_class_ids(std::string_view function, const Tensor& Y, int64_t c) {
  const auto bad = Y.lt(0).logical_or(Y.ge(c));
  if (!bad.any().item<bool>()) return;
  const int64_t row = bad.flatten().nonzero()[0][0].item<int64_t>();
  TORCH_CHECK_VALUE(false, function, ": expected class ids in [0, ", c, "), but got ",
                    Y.flatten()[row].item<int64_t>(), " at row ", row);
}

}  // namespace

Prepared prepare(std::string_view function, const Tensor& X, const Tensor& Y,
                 const ConvexOptions& options) {
  Prepared p;
  p.loss = loss_of(function, options.loss);
  p.penalty = penalty_of(function, options.penalty);
  p.is_sequence = p.penalty == PenaltyKind::kSequence || p.penalty == PenaltyKind::kSubstochastic;
  check_features(function, X, options.num_values);
  check_targets(function, X, Y, p.loss, p.is_sequence);
  check_gate(function, X, options.gate);
  p.is_ids = options.num_values > 0;
  TORCH_CHECK_VALUE(!p.is_sequence || (!options.gate && !p.is_ids), function,
                    ": expected features and no gate for sequences, but got ",
                    p.is_ids ? "token ids" : "a gate");
  p.N = X.size(0);
  p.n = X.size(1);
  p.d = p.is_ids ? options.num_values : X.size(2);
  p.P = options.gate ? options.gate->size(1) : 1;
  p.c = outputs_of(Y, options.classes);
  if (!Y.is_floating_point()) {
    TORCH_CHECK_VALUE(p.c >= 2, function, ": expected c >= 2 for cross_entropy, but got ", p.c);
    check_class_ids(function, Y, p.c);
  }
  const int64_t variables = 2 * p.d * p.c * p.n * p.n;
  TORCH_CHECK_VALUE(!p.is_sequence || variables <= 200000000, function,
                    ": expected at most 2e8 variables, but got ", variables, "; reduce n, d or c");
  p.X = X.contiguous();
  p.is_double = X.scalar_type() != at::kFloat;
  p.Y = (Y.is_floating_point() && p.is_ids ? Y.to(at::kDouble) : Y).contiguous();
  if (options.gate) p.gate = options.gate->to(at::kByte).contiguous();
  return p;
}

void check_state(std::string_view function, const char* name, const Tensor& Z, const Prepared& p) {
  const auto shape = p.outer(at::empty(p.state_shape(), at::kByte)).sizes().vec();
  TORCH_CHECK(Z.sizes() == shape && Z.is_floating_point(), function, ": expected ", name,
              p.is_sequence ? " of shape [2, c, d, n, n], " : " of shape [P, c, n, d], ",
              at::IntArrayRef(shape), ", but got ", Z.scalar_type(), " ", Z.sizes());
  check_finite(function, name, Z);
}

}  // namespace kktorch::detail
