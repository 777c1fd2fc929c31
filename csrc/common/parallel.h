#pragma once
// Parallel loops for torch-free code, on the OpenMP threads that LibTorch uses (at::set_num_threads
// governs both). Inside a parallel region the loop runs in order.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace kktorch::csrc {

/// Threads that parallel_for may use here: 1 inside a parallel region.
inline int64_t max_threads() {
#ifdef _OPENMP
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

/// f(i) for every i of [0, count), each exactly once, in any order. `f` must not depend on which
/// thread runs it. The first exception that an f throws is thrown again when all threads are done.
template <typename F>
void parallel_for(int64_t count, const F& f) {
  const int64_t threads = std::min(max_threads(), count);
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) f(i);
    return;
  }
#ifdef _OPENMP
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
#pragma omp parallel num_threads(static_cast <int>(threads))
  for (int64_t i = next++; i < count; i = next++) {
    try {
      f(i);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
      next = count;
    }
  }
  if (error) std::rethrow_exception(error);
#endif
}

}  // namespace kktorch::csrc
