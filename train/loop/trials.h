#pragma once
// Independent jobs on all CPU threads.
#include <ATen/Parallel.h>

#include <cstdint>
#include <functional>

namespace kktorch {

/// LibTorch with one thread, until the end of the scope.
class SingleThreaded {
 public:
  SingleThreaded() : threads_(at::get_num_threads()) { at::set_num_threads(1); }
  ~SingleThreaded() { at::set_num_threads(threads_); }
  SingleThreaded(const SingleThreaded&) = delete;
  SingleThreaded& operator=(const SingleThreaded&) = delete;

 private:
  int threads_;
};

/// Calls job(0) ... job(count - 1), in any order, on as many threads as LibTorch uses. Inside a job
/// LibTorch computes with one thread, however many workers there are: results do not depend on
/// their number. After an exception no further job starts, and the first one is thrown again.
void run_trials(int64_t count, const std::function<void(int64_t)>& job);

}  // namespace kktorch
