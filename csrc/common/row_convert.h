#pragma once
// Rows between storage and accumulation type, for the vectoriser: bit arithmetic for bfloat16, F16C
// for float16. Internal linkage, because every instruction-set tier needs its own copy.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cstdint>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "csrc/common/types.h"

namespace kktorch::csrc {
namespace {

/// The row in accumulation type: itself where storage is accumulation, else converted into
/// `scratch` ([size]).
template <typename T>
inline const acc_t<T>* load_row(const T* row, int64_t size, acc_t<T>* scratch) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    return row;
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    for (int64_t d = 0; d < size; ++d)
      scratch[d] = std::bit_cast<float>(static_cast<uint32_t>(row[d].x) << 16);
    return scratch;
  } else {
    int64_t d = 0;
#ifdef __F16C__
    for (; d + 8 <= size; d += 8) {
      const auto half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + d));
      _mm256_storeu_ps(scratch + d, _mm256_cvtph_ps(half));
    }
#endif
    for (; d < size; ++d) scratch[d] = static_cast<float>(row[d]);
    return scratch;
  }
}

/// float to bfloat16, to nearest even; NaN stays NaN.
inline uint16_t bfloat16_bits(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

/// Where a row in accumulation type is formed: in place where storage is accumulation, else in
/// `scratch`.
template <typename T>
inline acc_t<T>* row_buffer(T* row, acc_t<T>* scratch) {
  if constexpr (std::is_same_v<T, acc_t<T>>)
    return row;
  else
    return scratch;
}

/// Rounds what row_buffer collected into the row.
template <typename T>
inline void store_row(const acc_t<T>* values, int64_t size, T* row) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    for (int64_t d = 0; d < size; ++d) row[d].x = bfloat16_bits(values[d]);
  } else if constexpr (!std::is_same_v<T, acc_t<T>>) {
    int64_t d = 0;
#ifdef __F16C__
    for (; d + 8 <= size; d += 8) {
      const auto half = _mm256_cvtps_ph(_mm256_loadu_ps(values + d), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row + d), half);
    }
#endif
    for (; d < size; ++d) row[d] = static_cast<T>(values[d]);
  }
}

}  // namespace
}  // namespace kktorch::csrc
