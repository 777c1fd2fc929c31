#pragma once
// Extreme eigenvalues of a symmetric operator by Lanczos with full reorthogonalisation.
#include <torch/torch.h>

#include <cstdint>
#include <functional>

namespace kktorch::dynamics {

struct RitzValue {
  double value, residual;  ///< ||A v - value v|| of its Ritz vector v
};

/// The smallest Ritz value is an upper bound on the smallest eigenvalue, the largest one a lower
/// bound on the largest.
struct Curvature {
  RitzValue smallest, largest;
  int64_t iterations;
};

/// @param apply  the operator on a float64 vector [size].
/// @param seed   of the start vector.
Curvature lanczos(const std::function<at::Tensor(const at::Tensor&)>& apply, int64_t size,
                  uint64_t seed, int64_t iterations = 40);

}  // namespace kktorch::dynamics
