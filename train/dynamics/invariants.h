#pragma once
// Bounds that hold by proof, checked while a run goes on.
#include <cstdint>
#include <string>

namespace kktorch::dynamics {

enum class InvariantMode { kOff, kWarn, kError };

/// Counts violations; each names the invariant, the step, the value and its bound.
class Invariants {
 public:
  /// @param slack  relative: 1e-9 for float64, 1e-4 for float32.
  Invariants(InvariantMode mode, double slack) : mode_(mode), slack_(slack) {}

  bool enabled() const { return mode_ != InvariantMode::kOff; }
  int64_t violations() const { return violations_; }

  /// value <= bound (1 + slack) + absolute_slack.
  /// @throws UserError "KKT_INVARIANT: ..." in mode error; mode warn prints the first of each name.
  void at_most(const std::string& name, int64_t step, double value, double bound,
               double absolute_slack = 0);

 private:
  InvariantMode mode_;
  double slack_;
  int64_t violations_ = 0;
  std::string warned_;
};

}  // namespace kktorch::dynamics
