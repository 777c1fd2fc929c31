#pragma once
// Sums over blocks of samples whose value does not depend on the number of threads: chunks of
// blocks own a private sum each, added in a fixed order.
#include <algorithm>
#include <vector>

#include "csrc/convex/parallel.h"

namespace kktorch::csrc {

inline constexpr int64_t kBlockBytes = 512 << 10;  // of features: half of a second-level cache
inline constexpr int64_t kMostChunks = 8;

/// G [size] = the sum of what run(first, last, sum) adds to `sum` for its blocks [first, last).
/// @param G  null where it is not wanted; `sum` is null then.
template <typename T, typename F>
void sum_by_chunks(const Parallel& parallel, int64_t blocks, int64_t chunks, int64_t size, T* G,
                   const F& run) {
  std::vector<std::vector<T>> sums(G ? chunks : 0);
  parallel(chunks, [&](int64_t chunk) {
    if (G) sums[chunk].assign(size, T(0));
    run(chunk * blocks / chunks, (chunk + 1) * blocks / chunks, G ? sums[chunk].data() : nullptr);
  });
  if (!G) return;
  constexpr int64_t kPart = 4096;
  parallel((size + kPart - 1) / kPart, [&](int64_t part) {
    const int64_t end = std::min(size, (part + 1) * kPart);
    for (int64_t j = part * kPart; j < end; ++j) {
      T sum = sums[0][j];
      for (int64_t chunk = 1; chunk < chunks; ++chunk) sum += sums[chunk][j];
      G[j] = sum;
    }
  });
}

}  // namespace kktorch::csrc
