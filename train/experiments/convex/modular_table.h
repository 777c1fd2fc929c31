#pragma once
// The table of division modulo a prime: all a / b = c, and a seeded split of it.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace kktorch::convex {

struct Equations {
  at::Tensor pairs, answers;  ///< a and b: int64 [N, 2]; c: int64 [N]
};

struct Split {
  Equations train, test;
};

/// All p (p - 1) equations a = c b mod p, 1 <= b < p, in order of (a, b).
Equations equations(int64_t prime);

/// A random part of them for training, the others for testing.
Split split_of(int64_t prime, double fraction, uint64_t seed);

/// float64 [N, 2, p].
at::Tensor one_hot(const Equations& equations, int64_t prime);

/// Share of right answers in %; `logits(first, end)` is called on parts of the rows.
double accuracy(const at::Tensor& answers,
                const std::function<at::Tensor(int64_t first, int64_t end)>& logits);

}  // namespace kktorch::convex
