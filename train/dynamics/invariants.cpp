#include "train/dynamics/invariants.h"

#include <cstdio>

#include "train/common/error.h"

namespace kktorch::dynamics {

void Invariants::at_most(const std::string& name, int64_t step, double value, double bound,
                         double absolute_slack) {
  if (!enabled() || value <= bound + slack_ * bound + absolute_slack) return;
  ++violations_;
  const auto message = fmt::format("KKT_INVARIANT: {} at step {}: expected at most {}, but got {}",
                                   name, step, bound, value);
  if (mode_ == InvariantMode::kError) throw UserError(message);
  const auto mark = '\n' + name + '\n';
  if (warned_.find(mark) != std::string::npos) return;
  warned_ += mark;
  fmt::print(stderr, "{}\n", message);
}

}  // namespace kktorch::dynamics
