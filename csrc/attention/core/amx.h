#pragma once
// The tile registers of AMX.
#include <immintrin.h>

#include <cstdint>

namespace kktorch::csrc {
namespace {

/// As the instruction reads it.
struct TileConfiguration {
  uint8_t palette = 1, first_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfiguration) == 64);

struct TileShape {
  int64_t rows = 0, depth = 0;
};

struct Tiles {
  /// Sums of `rows` x 16, A of `rows` x `depth` words, B of `depth` x 16 words; at most 16 each.
  /// All tiles are lost, unless they were configured like that already.
  static void configure(int64_t rows, int64_t depth) {
    if (shape_.rows == rows && shape_.depth == depth) return;
    shape_ = {rows, depth};
    alignas(64) TileConfiguration configuration{};
    for (int t = 0; t < 8; ++t) {
      configuration.rows[t] = static_cast<uint8_t>(t < 6 ? rows : depth);
      configuration.row_bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? 4 * depth : 64);
    }
    // The intrinsic claims to read 8 bytes: without this, stores of the others may be left out.
    asm volatile("" : : "r"(&configuration) : "memory");
    _tile_loadconfig(&configuration);
  }
  static void release() {
    shape_ = {};
    _tile_release();
  }

  // Instructions name their tiles.
#define KKTORCH_FOR_TILE(tile, macro) \
  switch (tile) {                     \
    case 0:                           \
      macro(0);                       \
      break;                          \
    case 1:                           \
      macro(1);                       \
      break;                          \
    case 2:                           \
      macro(2);                       \
      break;                          \
    case 3:                           \
      macro(3);                       \
      break;                          \
    case 4:                           \
      macro(4);                       \
      break;                          \
    case 5:                           \
      macro(5);                       \
      break;                          \
    case 6:                           \
      macro(6);                       \
      break;                          \
    default:                          \
      macro(7);                       \
  }
  static void zero(int tile) { KKTORCH_FOR_TILE(tile, _tile_zero) }

  /// @param stride  of rows, in words.
  static void load(int tile, const float* from, int64_t stride) {
#define KKTORCH_LOAD(t) _tile_loadd(t, from, 4 * stride)
    KKTORCH_FOR_TILE(tile, KKTORCH_LOAD)
#undef KKTORCH_LOAD
  }
  static void store(int tile, float* to, int64_t stride) {
#define KKTORCH_STORE(t) _tile_stored(t, to, 4 * stride)
    KKTORCH_FOR_TILE(tile, KKTORCH_STORE)
#undef KKTORCH_STORE
  }
#undef KKTORCH_FOR_TILE

  /// sums += a b, words as two bfloat16; sums in 0 to 3, a in 4 + sums / 2, b in 6 + sums % 2.
  static void multiply(int sums) {
    switch (sums) {
      case 0:
        _tile_dpbf16ps(0, 4, 6);
        break;
      case 1:
        _tile_dpbf16ps(1, 4, 7);
        break;
      case 2:
        _tile_dpbf16ps(2, 5, 6);
        break;
      default:
        _tile_dpbf16ps(3, 5, 7);
    }
  }

 private:
  static inline thread_local TileShape shape_;
};

}  // namespace
}  // namespace kktorch::csrc
