#pragma once
// How the solver uses several threads: the caller brings the threads.
#include <cstdint>
#include <functional>

namespace kktorch::csrc {

/// Calls task(u) for u = 0..units-1, in any order, maybe at the same time.
using Parallel = std::function<void(int64_t units, const std::function<void(int64_t)>& task)>;

}  // namespace kktorch::csrc
