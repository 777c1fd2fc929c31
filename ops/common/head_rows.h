#pragma once
// Between tensors [B, H, L, width] and CPU kernels on the rows of one head.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "csrc/common/types.h"

namespace kktorch::detail {

template <typename T>
csrc::Rows<const T> rows_of(const at::Tensor& t, int64_t b, int64_t h) {
  return {t.const_data_ptr<T>() + b * t.stride(0) + h * t.stride(1), t.stride(2)};
}

template <typename T>
csrc::Rows<T> mutable_rows_of(const at::Tensor& t, int64_t b, int64_t h) {
  return {t.mutable_data_ptr<T>() + b * t.stride(0) + h * t.stride(1), t.stride(2)};
}

template <typename T>
csrc::HeadRows<const T> head_rows(const at::Tensor& t) {
  return {t.const_data_ptr<T>(), t.stride(0), t.stride(1), t.stride(2)};
}

template <typename T>
csrc::HeadRows<T> mutable_head_rows(const at::Tensor& t) {
  return {t.mutable_data_ptr<T>(), t.stride(0), t.stride(1), t.stride(2)};
}

/// f(unit, scratch) for all units, in parallel; `elements` is the work of a unit. Each thread has
/// its own scratch.
template <typename A, typename F>
void for_each(int64_t units, int64_t elements, int64_t scratch_size, const F& f) {
  constexpr int64_t kTaskElements = 32768;  // work that is worth a thread
  const int64_t grain = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, elements));
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    std::vector<A> scratch(scratch_size);
    for (int64_t u = begin; u < end; ++u) f(u, scratch.data());
  });
}

}  // namespace kktorch::detail
