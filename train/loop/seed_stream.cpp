#include "train/loop/seed_stream.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <numeric>
#include <utility>

#include "train/common/hash.h"

namespace kktorch {
namespace {

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

}  // namespace

SeedStream::SeedStream(uint64_t seed, std::string_view purpose, uint64_t index)
    : state_(mix(mix(mix(seed) ^ fnv1a(purpose)) ^ index)) {}

uint64_t SeedStream::next() { return mix(state_ += 0x9E3779B97F4A7C15U); }

uint64_t SeedStream::below(uint64_t bound) {
  // 2^64 mod bound values at the low end would be hit once too often: draw again.
  const uint64_t excess = (0 - bound) % bound;
  for (;;) {
    const uint64_t value = next();
    if (value >= excess) return value % bound;
  }
}

std::vector<int64_t> SeedStream::permutation(int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[below(i)]);
  return order;
}

void seed_torch(uint64_t seed, std::string_view purpose) {
  at::manual_seed(SeedStream(seed, purpose).next());
}

at::Generator generator_of(uint64_t seed, std::string_view purpose, uint64_t index) {
  return at::detail::createCPUGenerator(SeedStream(seed, purpose, index).next());
}

}  // namespace kktorch
