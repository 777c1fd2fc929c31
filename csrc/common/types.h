#pragma once
// Storage and accumulation types, and views of the rows of one head.
#include <cstdint>
#include <type_traits>

namespace kktorch::csrc {

/// Accumulation type: float64 for float64 storage, float32 for everything narrower.
template <typename T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// Rows of one (batch, head): row j starts at data + j * stride; its channels are contiguous.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t j) const { return data + j * stride; }
};

/// [B, heads, length, width], channels contiguous.
template <typename T>
struct HeadRows {
  T* data;
  int64_t batch_stride, head_stride, row_stride;

  Rows<T> of(int64_t b, int64_t h) const {
    return {data + b * batch_stride + h * head_stride, row_stride};
  }
};

}  // namespace kktorch::csrc
