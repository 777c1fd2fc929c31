#pragma once
// Between tensors whose slices are rows and the kernels of csrc/convex/rows.h.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "ops/attention/problem.h"
#include "ops/common/registration.h"

namespace kktorch::detail {

inline void check_rows_dtype(std::string_view op, const char* name, const at::Tensor& t) {
  TORCH_CHECK(is_supported_dtype(t.scalar_type()) && t.layout() == at::kStrided, op, ": expected ",
              name, " dense and of a dtype in {float16, bfloat16, float32, float64}, but got ",
              t.scalar_type(), " ", t.layout());
}

/// f(first, count, scratch) on runs of rows, in parallel. Every row is computed alone, so where a
/// run begins does not matter.
template <typename A, typename F>
void for_row_runs(int64_t rows, int64_t size, int64_t scratch_size, const F& f) {
  constexpr int64_t kTaskElements = 32768;  // work that is worth a thread
  const int64_t grain = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, size));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<A> scratch(scratch_size);
    f(begin, end - begin, scratch.data());
  });
}

}  // namespace kktorch::detail
