#include "train/experiments/convex/modular_table.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "train/loop/seed_stream.h"

namespace kktorch::convex {

Equations equations(int64_t p) {
  std::vector<int64_t> pairs(2 * p * (p - 1)), answers(p * (p - 1));
  for (int64_t b = 1; b < p; ++b)
    for (int64_t c = 0; c < p; ++c) {
      const int64_t a = c * b % p, row = a * (p - 1) + b - 1;
      pairs[2 * row] = a;
      pairs[2 * row + 1] = b;
      answers[row] = c;
    }
  const auto count = static_cast<int64_t>(answers.size());
  return {torch::tensor(pairs).view({count, 2}), torch::tensor(answers)};
}

Split split_of(int64_t p, double fraction, uint64_t seed) {
  const auto all = equations(p);
  SeedStream stream(seed, "modular split");
  const auto order = torch::tensor(stream.permutation(all.answers.size(0)));
  const auto kept = std::llround(fraction * static_cast<double>(all.answers.size(0)));
  const auto part = [&](const at::Tensor& rows) {
    return Equations{all.pairs.index_select(0, rows), all.answers.index_select(0, rows)};
  };
  return {part(order.slice(0, 0, kept)), part(order.slice(0, kept))};
}

at::Tensor one_hot(const Equations& e, int64_t p) {
  return torch::one_hot(e.pairs, p).to(torch::kDouble);
}

double accuracy(const at::Tensor& answers,
                const std::function<at::Tensor(int64_t, int64_t)>& logits) {
  constexpr int64_t kPart = 1024;
  int64_t right = 0;
  for (int64_t first = 0; first < answers.size(0); first += kPart) {
    const int64_t end = std::min(first + kPart, answers.size(0));
    right += logits(first, end).argmax(1).eq(answers.slice(0, first, end)).sum().item<int64_t>();
  }
  return 100 * static_cast<double>(right) / static_cast<double>(answers.size(0));
}

}  // namespace kktorch::convex
