#include "ops/convex/inputs.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/isfinite.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <string>

namespace kktorch::detail {
namespace {

using at::Tensor;

/// Index of the first true entry.
std::vector<int64_t> first_of(const Tensor& flags) {
  const auto places = flags.nonzero();
  std::vector<int64_t> index;
  for (int64_t i = 0; i < places.size(1); ++i) index.push_back(places[0][i].item<int64_t>());
  return index;
}

/// One read of dense float32 or float64 numbers: an exponent of ones is infinite or not a number.
template <typename Bits>
bool all_finite(const void* data, int64_t size, Bits exponent) {
  const auto* bits = static_cast<const Bits*>(data);
  constexpr int64_t kGrain = 1 << 16;
  std::atomic<bool> finite = true;
  at::parallel_for(0, size, kGrain, [&](int64_t begin, int64_t end) {
    Bits bad = 0;
    for (int64_t i = begin; i < end; ++i) bad |= (bits[i] & exponent) == exponent;
    if (bad) finite = false;
  });
  return finite;
}

bool is_finite(const Tensor& t) {
  if (t.is_contiguous() && t.scalar_type() == at::kDouble)
    return all_finite<uint64_t>(t.const_data_ptr(), t.numel(), 0x7ff0000000000000);
  if (t.is_contiguous() && t.scalar_type() == at::kFloat)
    return all_finite<uint32_t>(t.const_data_ptr(), t.numel(), 0x7f800000);
  return t.isfinite().all().item<bool>();
}

}  // namespace

void run_parallel(int64_t units, const std::function<void(int64_t)>& task) {
  at::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) task(u);
  });
}

void check_finite(std::string_view function, const char* name, const Tensor& t) {
  if (is_finite(t)) return;
  const auto index = first_of(t.isfinite().logical_not());
  auto value = t;
  for (const int64_t i : index) value = value[i];
  TORCH_CHECK_VALUE(false, function, ": expected finite values in ", name, ", but got ",
                    value.item<double>(), " at ", at::IntArrayRef(index));
}

void check_features(std::string_view function, const Tensor& X, int64_t num_values) {
  TORCH_CHECK(X.is_cpu() && X.layout() == at::kStrided, function,
              ": expected dense X on the CPU, but got ", X.layout(), " on ", X.device());
  if (num_values > 0) {
    TORCH_CHECK(X.scalar_type() == at::kLong && X.dim() == 2 && X.size(0) >= 1 && X.size(1) >= 1,
                function, ": expected token ids X int64 of shape [N, n] with N, n >= 1, but got ",
                X.scalar_type(), " ", X.sizes());
    const auto bad = X.lt(0).logical_or(X.ge(num_values));
    if (bad.any().item<bool>()) {
      const auto index = first_of(bad);
      TORCH_CHECK_VALUE(false, function, ": expected token ids in [0, ", num_values, "), but got ",
                        X[index[0]][index[1]].item<int64_t>(), " at ", at::IntArrayRef(index));
    }
    return;
  }
  TORCH_CHECK(X.scalar_type() == at::kFloat || X.scalar_type() == at::kDouble, function,
              ": expected dtype float32 or float64, but got X ", X.scalar_type());
  TORCH_CHECK(X.dim() == 3 && X.size(1) >= 1 && X.size(2) >= 1, function,
              ": expected X of shape [N, n, d] with n, d >= 1, but got ", X.sizes());
  TORCH_CHECK(X.size(0) >= 1, function, ": expected N >= 1, but got ", X.sizes());
  check_finite(function, "X", X);
}

csrc::Loss loss_of(std::string_view function, std::string_view loss) {
  if (loss == "half_squared") return csrc::Loss::kHalfSquared;
  if (loss == "squared") return csrc::Loss::kSquared;
  if (loss == "logistic") return csrc::Loss::kLogistic;
  if (loss == "cross_entropy") return csrc::Loss::kCrossEntropy;
  TORCH_CHECK_VALUE(false, function,
                    ": expected loss one of half_squared, squared, logistic, cross_entropy, but "
                    "got ",
                    loss);
}

void check_targets(std::string_view function, const Tensor& X, const Tensor& Y, csrc::Loss loss,
                   bool sequence) {
  const int64_t N = X.size(0);
  const bool ids = !Y.is_floating_point();
  TORCH_CHECK(Y.dim() >= 1 && Y.size(0) == N, function, ": expected Y with ", N, " rows, but got ",
              Y.sizes());
  TORCH_CHECK(Y.device() == X.device() &&
                  (ids ? Y.scalar_type() == at::kLong && loss == csrc::Loss::kCrossEntropy
                       : Y.scalar_type() == X.scalar_type() || X.scalar_type() == at::kLong),
              function, ": expected one device and one dtype for all tensors, but got X ",
              X.scalar_type(), " on ", X.device(), " and Y ", Y.scalar_type(), " on ", Y.device());
  const int64_t dim = (sequence ? 2 : 1) + !ids;
  TORCH_CHECK(Y.dim() == dim && (!sequence || Y.size(1) == X.size(1)) && (ids || Y.size(-1) >= 1),
              function, ": expected Y of shape ", sequence ? "[N, n, c]" : "[N, c]",
              ids ? " without c, ids" : "", ", but got ", Y.sizes());
  if (!ids) {
    check_finite(function, "Y", Y);
    if (loss == csrc::Loss::kLogistic) {
      const auto bad = Y.abs().ne(1);
      if (bad.any().item<bool>()) {
        const auto index = first_of(bad);
        auto value = Y;
        for (const int64_t i : index) value = value[i];
        TORCH_CHECK_VALUE(false, function, ": expected logistic targets -1 or +1, but got ",
                          value.item<double>(), " at ", at::IntArrayRef(index));
      }
    }
  }
  if (loss != csrc::Loss::kCrossEntropy) return;
  if (ids) return;  // their range needs the number of classes
  TORCH_CHECK_VALUE(Y.size(-1) >= 2, function, ": expected c >= 2 for cross_entropy, but got ",
                    Y.size(-1));
  const auto rows = Y.reshape({-1, Y.size(-1)});
  const auto sums = rows.sum(-1);
  const auto bad = rows.lt(0).any(-1).logical_or((sums - 1).abs().gt(1e-6));
  if (!bad.any().item<bool>()) return;
  const int64_t row = first_of(bad)[0];
  TORCH_CHECK_VALUE(false, function,
                    ": expected target probabilities >= 0 with sum 1 (tolerance 1e-6), but got "
                    "row ",
                    row, " with sum ", sums[row].item<double>(), " and min ",
                    rows[row].min().item<double>());
}

int64_t outputs_of(const Tensor& Y, int64_t classes) {
  if (Y.is_floating_point()) return Y.size(-1);
  return classes > 0 ? classes : Y.max().item<int64_t>() + 1;
}

void check_gate(std::string_view function, const Tensor& X, const std::optional<Tensor>& gate) {
  if (!gate) return;
  TORCH_CHECK(
      gate->dim() == 2 && gate->size(0) == X.size(0) && gate->size(1) >= 1 &&
          gate->device() == X.device() && gate->eq(0).logical_or(gate->eq(1)).all().item<bool>(),
      function, ": expected gate of shape [N, P] with entries 0 or 1, N = ", X.size(0),
      ", but got ", gate->sizes(), " on ", gate->device(),
      gate->numel() > 0 ? " with largest entry " + std::to_string(gate->max().item<double>()) : "");
  TORCH_CHECK_VALUE(gate->any().item<bool>(), function,
                    ": expected at least one gate open on at least one sample, but got none of ",
                    gate->sizes());
}

void check_gate_id(std::string_view function, const Tensor& gate_id, int64_t h, int64_t P) {
  TORCH_CHECK(gate_id.scalar_type() == at::kLong && gate_id.dim() == 1 && gate_id.size(0) == h,
              function, ": expected gate_id int64 [h] with values in [0, P), h = ", h, ", but got ",
              gate_id.scalar_type(), " ", gate_id.sizes());
  if (h == 0) return;
  const auto least = gate_id.min().item<int64_t>(), largest = gate_id.max().item<int64_t>();
  TORCH_CHECK_VALUE(least >= 0 && largest < P, function,
                    ": expected gate_id int64 [h] with values in [0, ", P, "), but got ",
                    least < 0 ? least : largest);
}

void check_beta(std::string_view function, double beta) {
  TORCH_CHECK_VALUE(std::isfinite(beta) && beta > 0, function,
                    ": expected finite beta > 0, but got ", beta);
}

}  // namespace kktorch::detail
