// Built once per instruction-set tier (KKTORCH_TIER). Eight float64 lanes at a time, which the
// compiler splits where registers are narrower.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "csrc/common/row_convert.h"
#include "csrc/svm/tracker.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

constexpr int64_t kLanes = 8;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double)), may_alias));
template <typename A>
struct Lanes;
template <>
struct Lanes<double> {
  typedef double type __attribute__((vector_size(kLanes * 8), may_alias, aligned(8)));
};
template <>
struct Lanes<float> {
  typedef float type __attribute__((vector_size(kLanes * 4), may_alias, aligned(4)));
};

struct Products {
  double logit, square;
};

/// x.y and x.x of a row in its accumulation type.
template <typename A>
inline __attribute__((always_inline)) Products products(const A* x, const double* y, int64_t n) {
  Doubles dot[2] = {}, square[2] = {};
  int64_t d = 0;
  for (; d + 2 * kLanes <= n; d += 2 * kLanes)
    for (int64_t i = 0; i < 2; ++i) {
      const auto v = __builtin_convertvector(
          *reinterpret_cast<const typename Lanes<A>::type*>(x + d + i * kLanes), Doubles);
      dot[i] += v * *reinterpret_cast<const Lanes<double>::type*>(y + d + i * kLanes);
      square[i] += v * v;
    }
  dot[0] += dot[1];
  square[0] += square[1];
  Products sum{0, 0};
  for (int64_t l = 0; l < kLanes; ++l) {
    sum.logit += dot[0][l];
    sum.square += square[0][l];
  }
  for (; d < n; ++d) {
    sum.logit += x[d] * y[d];
    sum.square += static_cast<double>(x[d]) * x[d];
  }
  return sum;
}

/// exp(x) for x <= 0: 2^n times the Taylor polynomial of the rest, |rest| <= log(2) / 2, whose
/// remainder is below rounding. 0 stands for results below the normal numbers.
inline __attribute__((always_inline)) double exponential(double x) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 2^52: its last bits are the integer
  constexpr double kInverse[] = {1.0,
                                 1.0,
                                 1.0 / 2,
                                 1.0 / 6,
                                 1.0 / 24,
                                 1.0 / 120,
                                 1.0 / 720,
                                 1.0 / 5040,
                                 1.0 / 40320,
                                 1.0 / 362880,
                                 1.0 / 3628800,
                                 1.0 / 39916800,
                                 1.0 / 479001600,
                                 1.0 / 6227020800};
  const double shifted = std::max(x, -708.0) * 1.4426950408889634 + kShift;
  const double n = shifted - kShift;
  const double rest =
      (std::max(x, -708.0) - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = kInverse[13];
  for (int k = 12; k >= 0; --k) p = p * rest + kInverse[k];
  const auto power = std::bit_cast<int64_t>(shifted) << 52;
  return x < -708 ? 0 : std::bit_cast<double>(std::bit_cast<int64_t>(p) + power);
}

/// Softmax of scale L over one set: the largest probability and the entropy
/// log Z - sum_t s_t (l_t - max l).
inline void softmax_of(const double* logits, int64_t size, double scale, double top,
                       double* probability, double* entropy) {
  constexpr int64_t kBlock = 64;
  double total = 0, weighted = 0, e[kBlock];
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t count = std::min(kBlock, size - begin);
    const double* l = logits + begin;
    for (int64_t t = 0; t < count; ++t) e[t] = exponential(scale * (l[t] - top));
    for (int64_t t = 0; t < count; ++t) {
      total += e[t];
      weighted += e[t] * (scale * (l[t] - top));
    }
  }
  *probability = 1 / total;
  *entropy = std::log(total) - weighted / total;
}

/// Logits of one set become margins, in place. `top` is at position `argmax`.
inline void margins_of(double* logits, int64_t size, int64_t selected, double* least,
                       int64_t* least_at) {
  const double chosen = logits[selected];
  double smallest = kInfinity;
  int64_t place = -1;
  for (int64_t t = 0; t < size; ++t) {
    logits[t] = chosen - logits[t];
    if (t != selected && logits[t] < smallest) {
      smallest = logits[t];
      place = t;
    }
  }
  *least = smallest;
  *least_at = place;
}

template <typename T>
void margins(const TokenSetsView<T>& sets, const double* y, const int64_t* given, double scale,
             int64_t first, int64_t last, const MarginOutputs& out, float* scratch) {
  for (int64_t q = first; q < last; ++q) {
    const int64_t begin = sets.row_ptr[q], size = sets.row_ptr[q + 1] - begin;
    double* logits = out.margin + begin;
    double square = 0, top = -kInfinity;
    bool finite = true;
    int64_t argmax = 0;
    for (int64_t t = 0; t < size; ++t) {
      const acc_t<T>* x;
      if constexpr (std::is_same_v<T, double>)
        x = sets.token(begin + t);
      else
        x = load_row(sets.token(begin + t), sets.dx, scratch);
      const auto [logit, length] = products(x, y + q * sets.dx, sets.dx);
      logits[t] = logit;
      finite = finite && std::isfinite(logit);
      square = std::max(square, length);
      if (logit > top) {
        top = logit;
        argmax = t;
      }
    }
    out.selected[q] = given ? given[q] : finite ? argmax : 0;
    out.longest[q] = finite ? std::sqrt(square) : kNaN;
    if (finite) {
      softmax_of(logits, size, scale, top, out.probability + q, out.entropy + q);
      margins_of(logits, size, out.selected[q], out.least + q, out.least_at + q);
    } else {
      std::fill_n(logits, size, kNaN);
      out.least[q] = out.probability[q] = out.entropy[q] = kNaN;
      out.least_at[q] = -1;
    }
  }
}

template <typename T>
void dual(const TokenSetsView<T>& sets, const int64_t* alpha, const double* g, int64_t first,
          int64_t last, double* u, double* mass, float* scratch) {
  using A = acc_t<T>;
  const int64_t dx = sets.dx;
  for (int64_t q = first; q < last; ++q) {
    double* __restrict sum = u + q * dx;
    std::fill_n(sum, dx, 0.0);
    double total = 0;
    const T* const selected = sets.token(sets.row_ptr[q] + alpha[q]);
    for (int64_t k = sets.row_ptr[q]; k < sets.row_ptr[q + 1]; ++k) {
      // NaN is not <= 0 and is passed on.
      if (k == sets.row_ptr[q] + alpha[q] || g[k] <= 0) continue;
      const double weight = g[k];
      total += weight;
      const A *chosen, *other;
      if constexpr (std::is_same_v<T, double>) {
        chosen = selected;
        other = sets.token(k);
      } else {
        chosen = load_row(selected, dx, scratch);
        other = load_row(sets.token(k), dx, scratch + dx);
      }
      for (int64_t d = 0; d < dx; ++d)
        sum[d] += weight * (static_cast<double>(chosen[d]) - static_cast<double>(other[d]));
    }
    mass[q] = total;
  }
}

}  // namespace

template <typename T>
TrackerKernels<T> tracker_kernels() {
  return {margins<T>, dual<T>};
}
template TrackerKernels<double> tracker_kernels();
template TrackerKernels<float> tracker_kernels();
template TrackerKernels<c10::BFloat16> tracker_kernels();
template TrackerKernels<c10::Half> tracker_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
