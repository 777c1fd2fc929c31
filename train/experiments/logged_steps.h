#pragma once
// The steps of a descent that get a row.
#include <algorithm>
#include <cstdint>

namespace kktorch {

/// Powers of 2, every fiftieth of the run, its eighth and half, and its end.
inline bool is_logged(int64_t step, int64_t steps) {
  const bool power = step > 0 && (step & (step - 1)) == 0;
  return step == 0 || power || step % std::max<int64_t>(1, steps / 50) == 0 || step == steps / 8 ||
         step == steps / 2 || step == steps;
}

}  // namespace kktorch
