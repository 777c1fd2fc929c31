#pragma once
// Ctrl-C: the first SIGINT or SIGTERM asks the running loop to stop at the next batch, a second one
// ends the program.

namespace kktorch {

/// While it lives, SIGINT and SIGTERM set interrupt_signal() instead of ending the program.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
};

/// The signal that asked the program to stop, 0 if none did.
int interrupt_signal();

}  // namespace kktorch
