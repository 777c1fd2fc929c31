#include "train/loop/interrupt.h"

#include <array>
#include <csignal>

namespace kktorch {
namespace {

constexpr std::array kSignals = {SIGINT, SIGTERM};
std::array<struct sigaction, kSignals.size()> previous_actions;
volatile std::sig_atomic_t received_signal = 0;

void remember(int signal) { received_signal = signal; }

}  // namespace

InterruptGuard::InterruptGuard() {
  received_signal = 0;
  struct sigaction action = {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESTART | SA_RESETHAND;  // the second Ctrl-C does not wait for the batch
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < kSignals.size(); ++i)
    sigaction(kSignals[i], &action, &previous_actions[i]);
}

InterruptGuard::~InterruptGuard() {
  for (size_t i = 0; i < kSignals.size(); ++i)
    sigaction(kSignals[i], &previous_actions[i], nullptr);
}

int interrupt_signal() { return received_signal; }

}  // namespace kktorch
