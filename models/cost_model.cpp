#include "models/cost_model.h"

namespace kktorch {

double pooled_fraction(const std::vector<int64_t>& scales) {
  double sum = 0;
  for (const auto scale : scales) sum += 1.0 / static_cast<double>(scale);
  return sum / static_cast<double>(scales.size());
}

namespace {

/// Projections, of keys and values the part `projected`, and feed-forward network.
double dense_flops(double n, double d, double f, double projected) {
  return 4 * n * d * d * (1 + projected) + 4 * n * d * f;
}

}  // namespace

double block_flops(const BlockShape& shape, double pooled_fraction, bool pool_first) {
  const auto n = static_cast<double>(shape.tokens), d = static_cast<double>(shape.width),
             f = static_cast<double>(shape.ffn);
  return dense_flops(n, d, f, pool_first ? pooled_fraction : 1.0) + 4 * n * n * d * pooled_fraction;
}

double linear_block_flops(const BlockShape& shape, int64_t heads, double pooled_fraction) {
  const auto n = static_cast<double>(shape.tokens), d = static_cast<double>(shape.width),
             f = static_cast<double>(shape.ffn), h = static_cast<double>(heads);
  return dense_flops(n, d, f, pooled_fraction) + 2 * n * d * (d / h) * (1 + pooled_fraction);
}

}  // namespace kktorch
