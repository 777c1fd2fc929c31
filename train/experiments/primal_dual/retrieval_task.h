#pragma once
// Retrieval under a nuisance that all keys of a sample share: find the key that the query was made
// from, although every channel is shifted and stretched.
//
//     a_j ~ N(0, I)     m = offset z     g = exp(gain z')     z, z', xi ~ N(0, I), per sample
//     k_j = (a_j + m) * g        q = (a_t + xi/2 + m) * g      t uniform over the N keys
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

namespace kktorch::primal_dual {

/// Standard deviations over samples and channels: of the offset, and of the logarithm of the gain.
struct Nuisance {
  double offset, gain;
};

struct RetrievalSize {
  int64_t keys, width;
};

struct RetrievalBatch {
  at::Tensor query;   ///< [n, D] float64
  at::Tensor keys;    ///< [n, N, D] float64
  at::Tensor target;  ///< [n] int64
};

/// The same generator draws the same a, t, xi, z, z' whatever the nuisance is: settings are
/// compared on common random numbers.
RetrievalBatch draw_batch(int64_t n, const RetrievalSize& size, const Nuisance& nuisance,
                          at::Generator& generator);

}  // namespace kktorch::primal_dual
