#pragma once
// Losses of rows of c outputs, their gradients, and the dual bound that any gradient gives.
//
//     half_squared   (a-y)^2 / 2           squared        (a-y)^2            (summed over outputs)
//     logistic       log(1 + exp(-y a))    cross_entropy  logsumexp(a) - q'a
//
// With R = dL/dA and dn >= the dual norm of its gradient, Lambda = s R is feasible for
// |s| <= beta / dn, and D = -sum L*(Lambda; y) with the best such s is a lower bound of
// min L(A(Z)) + beta Omega(Z). Sums are float64 and run over blocks in a fixed order.
#include <cstdint>
#include <string_view>

#include "csrc/convex/parallel.h"

namespace kktorch::csrc {

enum class Loss { kHalfSquared, kSquared, kLogistic, kCrossEntropy };

/// Lipschitz constant mu of dL/da.
double smoothness(Loss loss);

/// Targets of rows: [rows, c], or class ids [rows] for cross-entropy.
template <typename T>
struct Targets {
  const T* values;
  const int64_t* ids;
};

/// Sum of the losses of rows [first, first + count); A: those rows alone, [count, c].
template <typename T>
double loss_of_rows(Loss loss, const T* A, const Targets<T>& Y, int64_t first, int64_t count,
                    int64_t c);

/// R = dL/dA for those rows.
template <typename T>
void gradient_of_rows(Loss loss, const T* A, const Targets<T>& Y, int64_t first, int64_t count,
                      int64_t c, T* R);

struct DualPoint {
  double value, scale;  ///< D and s
};

/// The best dual point along R: [rows, c]; dn = 0 leaves s unbounded.
/// @param shrink  s is multiplied by it before D is evaluated: for points of an enlarged program.
template <typename T>
DualPoint dual_point(Loss loss, const T* R, const Targets<T>& Y, int64_t rows, int64_t c, double dn,
                     double beta, const Parallel& parallel, double shrink = 1);

}  // namespace kktorch::csrc
