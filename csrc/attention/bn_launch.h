#pragma once
// How the CUDA kernels of Attention-BN cut their work: pure arithmetic, shared by the launches and
// their tests.
#include <algorithm>
#include <cstdint>

#include "csrc/common/macros.h"

namespace kktorch::csrc {

struct BnShape {
  int64_t B, H, Hk, M, N, D;
};

/// One thread block: `channels` threads side by side (coalesced) times `lanes` rows at a time, on
/// blocks of kBnRows rows.
struct BnLaunch {
  int channels, lanes;
};

constexpr int kBnThreads = 256;
constexpr int64_t kBnRows =
    256;  // rows of one thread block: enough reads in flight, and many blocks at long lengths

/// `channels` is the power of two that covers D, at most 64: wider heads are walked in strides of
/// it.
inline BnLaunch bn_launch(int64_t D) {
  int channels = 1;
  while (channels < D && channels < 64) channels *= 2;
  return {channels, kBnThreads / channels};
}

KKTORCH_HD int64_t bn_blocks(int64_t rows) { return (rows + kBnRows - 1) / kBnRows; }

/// Thread blocks form a one-dimensional grid, because the other dimensions end at 65535: block u is
/// (head, block of rows).
struct BnUnit {
  int64_t head, block;
};

KKTORCH_HD BnUnit bn_unit(int64_t index, int64_t rows) {
  return {index / bn_blocks(rows), index % bn_blocks(rows)};
}

/// Values of workspace: block moments of all key heads (forward), or column sums of all query
/// blocks and groups (backward).
inline int64_t bn_workspace_size(const BnShape& s) {
  const int64_t moments = s.B * s.Hk * bn_blocks(s.N) * (1 + 2 * s.D);
  const int64_t sums = s.B * (s.H * bn_blocks(s.M) + s.Hk) * 2 * s.D;
  return std::max(moments, sums);
}

}  // namespace kktorch::csrc
