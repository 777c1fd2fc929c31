#pragma once
// A convex program whose arguments are checked, as the core takes it.
#include <ATen/core/Tensor.h>

#include <string_view>
#include <vector>

#include "ops/convex/inputs.h"
#include "ops/convex_solver.h"

namespace kktorch::detail {

/// A checked problem: what the core takes, and the tensors that it points into.
struct Prepared {
  at::Tensor X, Y, gate;
  csrc::Loss loss;
  csrc::PenaltyKind penalty;
  int64_t N, n, d, c, P;
  bool is_double, is_sequence, is_ids;

  template <typename T>
  csrc::ConvexData<T> data() const {
    csrc::ConvexData<T> data = {.N = N, .n = n, .d = d, .c = c, .P = P};
    if (is_ids)
      data.ids = X.const_data_ptr<int64_t>();
    else
      data.X = X.const_data_ptr<T>();
    if (gate.defined()) data.gate = gate.const_data_ptr<uint8_t>();
    data.loss = loss;
    data.penalty = penalty;
    data.targets = targets_of<T>(Y);
    return data;
  }

  /// Layout of the solver's state.
  std::vector<int64_t> state_shape() const {
    return is_sequence ? std::vector<int64_t>{2, n, c, n, d} : std::vector<int64_t>{P, c, n, d};
  }
  /// (sign, r, l, k, q) <-> (sign, l, q, r, k)
  at::Tensor outer(const at::Tensor& Z) const {
    return is_sequence ? Z.permute({0, 2, 4, 1, 3}).contiguous() : Z;
  }
  at::Tensor inner(const at::Tensor& Z) const {
    return (is_sequence ? Z.permute({0, 3, 1, 4, 2}) : Z).contiguous();
  }
  std::vector<int64_t> prediction_shape() const {
    return is_sequence ? std::vector<int64_t>{N, n, c} : std::vector<int64_t>{N, c};
  }
};

/// Checks X, Y and what `options` say of the program: loss, penalty, gate, num_values, classes.
Prepared prepare(std::string_view function, const at::Tensor& X, const at::Tensor& Y,
                 const ConvexOptions& options);

/// Z of the program, as callers see it: its shape, and that it is finite.
void check_state(std::string_view function, const char* name, const at::Tensor& Z,
                 const Prepared& p);

}  // namespace kktorch::detail
