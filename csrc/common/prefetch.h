#pragma once
// Rows of a head lie apart where heads alternate in memory: caches do not see the next one coming.
#include <cstdint>

#include "csrc/common/types.h"

namespace kktorch::csrc {

/// Fetches a row that a loop over rows reads soon after row j.
template <typename T>
inline void prefetch_behind(const Rows<T>& rows, int64_t j, int64_t width) {
  constexpr int64_t kRowsAhead = 8, kLine = 64 / sizeof(T);
  for (int64_t d = 0; d < width; d += kLine) __builtin_prefetch(rows[j + kRowsAhead] + d);
}

}  // namespace kktorch::csrc
