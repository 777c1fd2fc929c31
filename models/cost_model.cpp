#include "models/cost_model.h"

namespace kktorch {

double pooled_fraction(const std::vector<int64_t>& scales) {
  double sum = 0;
  for (const auto scale : scales) sum += 1.0 / static_cast<double>(scale);
  return sum / static_cast<double>(scales.size());
}

double block_flops(const BlockShape& shape, double pooled_fraction, bool pool_first) {
  const auto n = static_cast<double>(shape.tokens), d = static_cast<double>(shape.width),
             f = static_cast<double>(shape.ffn);
  const double projected = pool_first ? pooled_fraction : 1.0;
  return 4 * n * d * d * (1 + projected) + 4 * n * n * d * pooled_fraction + 4 * n * d * f;
}

}  // namespace kktorch
