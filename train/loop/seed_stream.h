#pragma once
// Every random choice of a run comes from a stream named after its purpose: adding one consumer of
// randomness shifts no other, and two methods trained with one seed see the same split, the same
// batches and the same initial weights.
#include <ATen/core/Generator.h>

#include <cstdint>
#include <string_view>
#include <vector>

namespace kktorch {

/// SplitMix64 (Steele, Lea & Flood 2014), started from (seed, purpose, index).
class SeedStream {
 public:
  SeedStream(uint64_t seed, std::string_view purpose, uint64_t index = 0);

  uint64_t next();

  /// Uniform in 0..bound-1, without modulo bias. bound >= 1.
  uint64_t below(uint64_t bound);

  /// A uniform permutation of 0..n-1 (Fisher-Yates).
  std::vector<int64_t> permutation(int64_t n);

 private:
  uint64_t state_;
};

/// Seeds LibTorch's default generators from the stream (seed, purpose).
void seed_torch(uint64_t seed, std::string_view purpose);

/// A generator of its own for draws on the CPU, from the stream (seed, purpose, index).
at::Generator generator_of(uint64_t seed, std::string_view purpose, uint64_t index = 0);

}  // namespace kktorch
