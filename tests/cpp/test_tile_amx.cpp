// Products on the tiles of AMX, emulated, against sums in double.
#ifdef KKTORCH_AMX
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "csrc/attention/core/multiply.h"
#include "csrc/common/cpu_tier.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kDepthStride = 64, kColumnStride = 128, kRows = 96;

struct Shape {
  int64_t rows, columns, depth;
};

// Whole tiles, pairs of them, rests of rows and of the depth, more columns than a panel has.
const Shape kShapes[] = {{1, 1, 1},    {16, 16, 16}, {32, 32, 32}, {17, 5, 3},
                         {48, 64, 32}, {5, 80, 33},  {96, 97, 20}, {31, 128, 47}};

/// Operands as words of E, and their values in double: a[row][k], b[k][column], k by element.
template <typename E>
struct Operands {
  std::vector<float> a, b;
  std::vector<std::vector<double>> a_values, b_values;

  Operands(const Shape& s, bool transposed, std::mt19937& generator)
      : a(kRows * kColumnStride), b(2 * kDepthStride * kPanel<float>) {
    std::normal_distribution<float> normal;
    a_values.assign(s.rows, {});
    b_values.assign(s.depth * E::kGroup, std::vector<double>(s.columns));
    // What lies beyond an operand must not matter.
    for (auto& word : a) word = word_of(normal(generator), normal(generator)).first;
    for (auto& word : b) word = word_of(normal(generator), normal(generator)).first;
    for (int64_t i = 0; i < s.rows; ++i)
      for (int64_t k = 0; k < s.depth; ++k) {
        const auto [word, values] = word_of(normal(generator), normal(generator));
        a[transposed ? k * kColumnStride + i : i * kDepthStride + k] = word;
        for (int e = 0; e < E::kGroup; ++e) a_values[i].push_back(values[e]);
      }
    for (int64_t k = 0; k < s.depth; ++k)
      for (int64_t j = 0; j < s.columns; ++j) {
        const auto [word, values] = word_of(normal(generator), normal(generator));
        b[j / kPanel<float> * panel_stride() + k * kPanel<float> + j % kPanel<float>] = word;
        for (int e = 0; e < E::kGroup; ++e) b_values[k * E::kGroup + e][j] = values[e];
      }
  }

  static constexpr int64_t panel_stride() { return kDepthStride * kPanel<float>; }

 private:
  static std::pair<float, std::array<double, 2>> word_of(float first, float second) {
    if constexpr (E::kGroup == 1) return {first, {first, 0}};
    const c10::BFloat16 pair[] = {c10::BFloat16(first), c10::BFloat16(second)};
    float word;
    std::memcpy(&word, pair, sizeof(word));
    return {word, {static_cast<float>(pair[0]), static_cast<float>(pair[1])}};
  }
};

class TileAmx : public testing::Test {
 protected:
  void SetUp() override {
    if (cpu_tier() < CpuTier::kAvx512Bf16) GTEST_SKIP() << "needs AVX512_BF16";
  }
};

/// @param rounding  of a product of two standard normal numbers.
template <typename E, bool kTransposed>
void expect_sums(double rounding) {
  std::mt19937 generator(1);
  for (const auto& s : kShapes)
    for (const bool accumulate : {false, true}) {
      const Operands<E> operands(s, kTransposed, generator);
      std::vector<float> c(kRows * kColumnStride, 1);
      const MultiplySession session;
      multiply<E, kTransposed>(s.rows, s.columns, s.depth,
                               {operands.a.data(), kTransposed ? kColumnStride : kDepthStride},
                               {operands.b.data(), kPanel<float>, Operands<E>::panel_stride()},
                               {c.data(), kColumnStride}, accumulate);
      for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j < s.columns; ++j) {
          double sum = accumulate ? 1 : 0;
          for (size_t k = 0; k < operands.b_values.size(); ++k)
            sum += operands.a_values[i][k] * operands.b_values[k][j];
          ASSERT_NEAR(c[i * kColumnStride + j], sum, rounding * std::sqrt(s.depth) * 8)
              << s.rows << " x " << s.columns << ", depth " << s.depth << " at " << i << ", " << j;
        }
      for (int64_t i = s.rows; i < kRows; ++i)
        ASSERT_EQ(c[i * kColumnStride], 1) << "rows beyond C are left alone";
    }
}

TEST_F(TileAmx, PairsOfBfloat16) {
  expect_sums<BrainPairs, false>(1e-6);
  expect_sums<BrainPairs, true>(1e-6);
}

TEST_F(TileAmx, FloatsInTwoPartsKeep16Bits) {
  expect_sums<SplitFloats, false>(0x1p-16);
  expect_sums<SplitFloats, true>(0x1p-16);
}

TEST_F(TileAmx, ColumnProductsAreTheSumsOfMultiplyToTheBit) {
  std::mt19937 generator(2);
  for (const int64_t depth : {3, 16, 20, 47}) {
    const Operands<BrainPairs> x({kLanes<float>, kLanes<float>, depth}, false, generator);
    // A as the transpose of B: the diagonal of C holds sums of squares of columns.
    std::vector<float> rows(kRows * kDepthStride), c(kRows * kColumnStride);
    for (int64_t i = 0; i < kLanes<float>; ++i)
      for (int64_t k = 0; k < depth; ++k) rows[i * kDepthStride + k] = x.b[k * kPanel<float> + i];
    const MultiplySession session;
    multiply<BrainPairs>(kLanes<float>, kLanes<float>, depth, {rows.data(), kDepthStride},
                         {x.b.data(), kPanel<float>, 0}, {c.data(), kColumnStride}, false);
    const auto sums =
        column_products<BrainPairs>(x.b.data(), kPanel<float>, x.b.data(), kPanel<float>, depth);
    for (int64_t i = 0; i < kLanes<float>; ++i) EXPECT_EQ(sums[i], c[i * kColumnStride + i]);
  }
}

}  // namespace
}  // namespace kktorch::csrc
#endif  // KKTORCH_AMX
