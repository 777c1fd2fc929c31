#pragma once
// Ctrl-C during a solve or a training that can return its best point.
#include <csignal>

namespace kktorch::detail {

/// While it lives, Ctrl-C is remembered instead of ending the program.
class CaughtInterrupt {
 public:
  explicit CaughtInterrupt(bool active) : active_(active) {
    if (!active) return;
    received = 0;
    struct sigaction action = {};
    action.sa_handler = [](int) { received = 1; };
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, &previous_);
  }
  ~CaughtInterrupt() {
    if (active_) sigaction(SIGINT, &previous_, nullptr);
  }
  CaughtInterrupt(const CaughtInterrupt&) = delete;
  CaughtInterrupt& operator=(const CaughtInterrupt&) = delete;

  bool arrived() const { return active_ && received != 0; }

 private:
  static inline volatile std::sig_atomic_t received = 0;
  bool active_;
  struct sigaction previous_ = {};
};

}  // namespace kktorch::detail
