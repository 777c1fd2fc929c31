#include "train/loop/trials.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace kktorch {

void run_trials(int64_t count, const std::function<void(int64_t)>& job) {
  const auto workers = std::min<int64_t>(count, at::get_num_threads());
  const SingleThreaded single_threaded;
  std::atomic<int64_t> next = 0;
  std::exception_ptr error;
  std::mutex error_lock;
  const auto work = [&] {
    at::set_num_threads(1);  // a setting of each thread
    for (int64_t i = next++; i < count; i = next++) {
      try {
        job(i);
      } catch (...) {
        next = count;
        const std::lock_guard lock(error_lock);
        if (!error) error = std::current_exception();
      }
    }
  };
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < workers; ++i) threads.emplace_back(work);
  for (auto& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace kktorch
