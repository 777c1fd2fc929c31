#pragma once
// The tile registers of AMX in memory, with the sums that Intel's manual states for TDPBF16PS: to
// test the tile micro-kernel on machines without them.
#include <cmath>
#include <cstdint>
#include <cstring>

namespace kktorch::csrc {
namespace {

struct TileState {
  int64_t rows = 0, depth = 0;
  float words[8][16][16] = {};
};

struct Tiles {
  static void configure(int64_t rows, int64_t depth) {
    if (state_.rows == rows && state_.depth == depth) return;
    state_ = {};
    state_.rows = rows;
    state_.depth = depth;
  }
  static void release() { state_ = {}; }
  static void zero(int tile) { std::memset(state_.words[tile], 0, sizeof(state_.words[tile])); }

  static void load(int tile, const float* from, int64_t stride) {
    zero(tile);
    for (int64_t i = 0; i < rows_of(tile); ++i)
      std::memcpy(state_.words[tile][i], from + i * stride, 4 * width_of(tile));
  }
  static void store(int tile, float* to, int64_t stride) {
    for (int64_t i = 0; i < rows_of(tile); ++i)
      std::memcpy(to + i * stride, state_.words[tile][i], 4 * width_of(tile));
  }

  static void multiply(int sums) {
    const int a = 4 + sums / 2, b = 6 + sums % 2;
    for (int64_t m = 0; m < state_.rows; ++m) {
      float both[16][2] = {};
      for (int64_t k = 0; k < state_.depth; ++k)
        for (int64_t n = 0; n < 16; ++n)
          for (int half = 0; half < 2; ++half)
            both[n][half] = std::fma(value(state_.words[a][m][k], half),
                                     value(state_.words[b][k][n], half), both[n][half]);
      for (int64_t n = 0; n < 16; ++n) state_.words[sums][m][n] += both[n][0] + both[n][1];
    }
  }

 private:
  static int64_t rows_of(int tile) { return tile < 6 ? state_.rows : state_.depth; }
  static int64_t width_of(int tile) { return tile == 4 || tile == 5 ? state_.depth : 16; }

  /// The first or second bfloat16 of a word.
  static float value(float word, int half) {
    uint32_t bits;
    std::memcpy(&bits, &word, 4);
    bits = half == 0 ? bits << 16 : bits & 0xffff0000u;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
  }

  static inline thread_local TileState state_;
};

}  // namespace
}  // namespace kktorch::csrc
