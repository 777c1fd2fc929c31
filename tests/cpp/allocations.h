#pragma once
// Memory that LibTorch's CPU allocator hands out while a function runs.
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace kktorch::test {

class AllocationPeak : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    held_ += bytes;
    peak_ = std::max(peak_, held_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t peak() const { return peak_; }

 private:
  int64_t held_ = 0, peak_ = 0;
};

/// The most bytes that f() held at once, results included; allocations of other threads are not
/// seen.
template <typename F>
int64_t peak_allocation(const F& f) {
  const auto seen = std::make_shared<AllocationPeak>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, seen);
  f();
  return seen->peak();
}

}  // namespace kktorch::test
