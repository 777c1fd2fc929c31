#include "train/experiments/primal_dual/retrieval_task.h"

#include <torch/torch.h>

namespace kktorch::primal_dual {

RetrievalBatch draw_batch(int64_t n, const RetrievalSize& size, const Nuisance& nuisance,
                          at::Generator& generator) {
  const auto [keys, width] = size;
  const auto normal = [&](at::IntArrayRef shape) {  // drawn in float32: five times as fast
    return torch::randn(shape, generator, torch::kFloat).to(torch::kDouble);
  };
  const auto clean = normal({n, keys, width});
  const auto target = torch::randint(keys, {n}, generator, torch::kLong);
  const auto noise = normal({n, width});
  const auto offset = nuisance.offset * normal({n, 1, width});
  const auto gain = (nuisance.gain * normal({n, 1, width})).exp();
  const auto chosen = clean.index({torch::arange(n), target});
  return {.query = (chosen + 0.5 * noise + offset.squeeze(1)) * gain.squeeze(1),
          .keys = (clean + offset) * gain,
          .target = target};
}

}  // namespace kktorch::primal_dual
