#pragma once
// Least-distance programming by non-negative least squares (Lawson and Hanson, Solving Least
// Squares Problems, 1974, chapter 23), the exact solver of small attention SVMs. Torch-free.
//
//     min |w|  s.t.  c_j.w >= h_j, h >= 0          given columns c_j [N], right-hand sides h
//
// With the columns e_j = [c_j / rho; h_j] and f = [0; 1], u = argmin |E u - f| over u >= 0 and
// r = E u - f: if r = 0 no w is feasible and u proves it, else w = r_head / (|r|^2 rho) is optimal
// with multipliers u / (rho^2 |r|^2); |r|^2 = 1 / (1 + rho^2 |w|^2). NNLS is an active-set method
// on an updated QR; it stops when no column has a positive inner product with the residual. Memory
// (N + 1) M, time |S| pivots of (N + 1) M + N |S|.
#include <cstdint>
#include <functional>
#include <vector>

namespace kktorch::csrc {

struct LeastDistanceProblem {
  std::vector<double> columns;  ///< [M, N], c_j in row j
  std::vector<double> h;        ///< [M]
  int64_t N;
  double rho;  ///< max |c_j|
  double kappa_max;
  int64_t count() const { return static_cast<int64_t>(h.size()); }
};

struct LeastDistanceResult {
  enum class Status { kOptimal, kInfeasible, kStopped } status = Status::kStopped;
  std::vector<double> w;    ///< [N]
  std::vector<double> lam;  ///< [M]; infeasible: with sum 1
  int64_t pivots = 0;
};

/// `go_on` is asked every 64 pivots.
LeastDistanceResult solve_least_distance(const LeastDistanceProblem& problem,
                                         const std::function<bool(int64_t pivots)>& go_on);

/// For h = 1: the point with margin exactly 1 on the columns with lam > 0, w = B (B^T B)^-1 1 and
/// lam = (B^T B)^-1 1 clipped at 0, both by a QR of B. False if these columns are dependent.
bool refine_least_distance(const LeastDistanceProblem& problem, LeastDistanceResult& result);

}  // namespace kktorch::csrc
