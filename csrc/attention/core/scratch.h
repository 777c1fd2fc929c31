#pragma once
// One piece of scratch memory, cut into arrays. Counting and cutting are the same code: from a null
// base nothing but the size is of interest.
#include <cstddef>
#include <cstdint>

namespace kktorch::csrc {
namespace {

class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<std::byte*>(base)) {}

  /// `count` values, aligned to cache lines.
  template <typename V>
  V* take(int64_t count) {
    constexpr int64_t kLine = 64;
    auto* taken = reinterpret_cast<V*>(base_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(V)) + kLine - 1) / kLine * kLine;
    return taken;
  }

  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace kktorch::csrc
