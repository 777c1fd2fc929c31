#pragma once
// The finite part of an attention matrix under several selected tokens (arXiv 2308.16898, section
// on multiple optimal tokens). Torch-free.
//
//     S_fin = span{ a_e z_e^T : e an equality pair }     P_fin(W) = E*(nu),  G_EE nu = E(W)
//
// G_EE is solved by its pseudo-inverse: eigenvalues below 1e-10 of the largest count as 0.
#include <vector>

#include "csrc/svm/token_sets.h"

namespace kktorch::csrc {

class FinitePart {
 public:
  /// Keeps references to both arguments. Cost E^3 for E equality pairs.
  FinitePart(const TokenSetsView<double>& sets, const Pairs& pairs);

  bool empty() const { return pairs_.equality.size() == 0; }
  /// nu [E] of the minimum norm with G_EE nu = rhs in the least-squares sense.
  std::vector<double> solve(const double* rhs) const;
  /// The W of minimum norm with E(W) = rhs in the least-squares sense.
  std::vector<double> minimum_norm(const double* rhs) const;
  /// P_fin(W), and W - P_fin(W).
  std::vector<double> project(const double* W) const;
  std::vector<double> complement(const double* W) const;

 private:
  const TokenSetsView<double>& sets_;
  const Pairs& pairs_;
  std::vector<double> vectors_, inverse_;  // G_EE = V diag(1 / inverse) V^T on its range
};

}  // namespace kktorch::csrc
