// Built once per instruction-set tier (KKTORCH_TIER). Long rows: one row per vector loop. Short
// rows, simplex projection only: a block of rows is transposed, and a vector lane is a row; float32
// rows find their set in float32, and the sums of the last steps are float64.
#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/attention/core/vector.h"
#include "csrc/common/row_convert.h"
#include "csrc/convex/rows.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

constexpr int kWide = kLanes<double>;
using Doubles = Vector<double>;
using Mask = Vector<int64_t>;

/// kWide values of type A in float64.
template <typename A>
inline Doubles load_doubles(const A* from) {
#if defined(__AVX512F__)
  // GCC 12 splits the conversion below in two.
  if constexpr (sizeof(A) == 4) return _mm512_cvtps_pd(_mm256_loadu_ps(from));
#endif
  typedef A Narrow __attribute__((vector_size(kWide * sizeof(A))));
  return __builtin_convertvector(load<Narrow>(from), Doubles);
}

/// As many values as a vector of Wide has lanes; Wide is A or double.
template <typename Wide, typename A>
inline Vector<Wide> load_as(const A* from) {
  if constexpr (std::is_same_v<Wide, A>)
    return load<Vector<A>>(from);
  else
    return load_doubles(from);
}

template <typename A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

/// Appends the lanes of x whose mask is set to `to`; writes a whole vector. Returns how many there
/// are.
template <typename A>
inline int64_t append(Vector<A> x, Vector<Bits<A>> mask, A* to) {
#if defined(__AVX512VL__)
  if constexpr (sizeof(A) == 4) {
    const auto bits = _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
    store(to, _mm512_maskz_compress_ps(bits, x));
    return __builtin_popcount(bits);
  } else {
    const auto bits = _mm512_movepi64_mask(reinterpret_cast<__m512i>(mask));
    store(to, _mm512_maskz_compress_pd(bits, x));
    return __builtin_popcount(bits);
  }
#else
  int64_t count = 0;
  for (int i = 0; i < kLanes<A>; ++i) {
    to[count] = x[i];
    count -= mask[i];  // -1 where set
  }
  return count;
#endif
}

/// The kept entries of a row and their sum.
struct Kept {
  int64_t count;
  double sum;
};

/// The sum of y[0..count), which has room for a vector more.
template <typename A>
inline Kept summed(A* y, int64_t count) {
  constexpr int kStep = 2 * kWide;
  for (int i = 0; i < kStep; ++i) y[count + i] = 0;
  Doubles sum[2] = {};
  for (int64_t i = 0; i < count; i += kStep)
    for (int j = 0; j < 2; ++j) sum[j] += load_doubles(y + i + j * kWide);
  for (int i = 0; i < kStep; ++i) y[count + i] = -kInfinity<A>;
  return {count, reduce_sum<double>(sum[0] + sum[1])};
}

/// The largest value of type A that is not above x: what exceeds x exceeds it too.
template <typename A>
inline A rounded_down(double x) {
  const A near = static_cast<A>(x);
  return static_cast<double>(near) > x ? std::nextafter(near, -kInfinity<A>) : near;
}

/// Keeps what is above tau of y[0..count), in place and in order.
template <typename A>
inline Kept keep_above(A* y, int64_t count, double tau) {
  const auto low = broadcast(rounded_down<A>(tau));
  int64_t kept = 0;
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    const auto x = load<Vector<A>>(y + i);
    kept += append<A>(x, x > low, y + kept);
  }
  return summed(y, kept);
}

/// The largest entry; NaN if the row holds NaN or +inf, or nothing but -inf.
template <typename A>
inline A checked_max(const A* v, int64_t size) {
  constexpr int kStep = kLanes<A>;
  using V = Vector<A>;
  const auto infinity = broadcast(kInfinity<A>);
  V top[2] = {broadcast(-kInfinity<A>), broadcast(-kInfinity<A>)};
  Vector<Bits<A>> usual = top[0] < infinity;
  int64_t k = 0;
  for (; k + 2 * kStep <= size; k += 2 * kStep)
    for (int i = 0; i < 2; ++i) {
      const auto x = load<V>(v + k + i * kStep);
      top[i] = larger(x, top[i]);
      usual &= x < infinity;  // not of NaN
    }
  A result = reduce_max<A>(larger(top[0], top[1]));
  bool strange = reduce<Bits<A>>(usual, [](auto a, auto b) { return a & b; }) == 0;
  for (; k < size; ++k) {
    result = std::max(result, v[k]);
    strange |= !(v[k] < kInfinity<A>);
  }
  return strange || result == -kInfinity<A> ? std::numeric_limits<A>::quiet_NaN() : result;
}

/// Are any of the lanes set?
template <typename M>
inline bool any(M mask) {
  return reduce<std::decay_t<decltype(mask[0])>>(mask, [](auto a, auto b) { return a | b; }) != 0;
}

/// y = v - top for the entries above -radius; y has room for size + 2 vectors.
template <typename A>
inline Kept keep_near_top(const A* v, int64_t size, A top, double radius, A* y) {
  constexpr int kStep = kLanes<A>;
  const auto tops = broadcast(top), low = broadcast(rounded_down<A>(-radius));
  int64_t kept = 0, k = 0;
  const auto take = [&](const A* from) {
    const Vector<A> x = load<Vector<A>>(from) - tops;
    kept += append<A>(x, x > low, y + kept);
  };
  for (; k + kStep <= size; k += kStep) take(v + k);
  if (k < size) {
    A tail[kStep];
    std::fill_n(tail, kStep, -kInfinity<A>);
    std::copy_n(v + k, size - k, tail);
    take(tail);
  }
  return summed(y, kept);
}

/// tau of one row from its entries near the top; counts the steps.
template <typename A>
inline double newton(A* y, Kept kept, double radius, int64_t& steps) {
  double tau = -radius;
  while (true) {
    ++steps;
    const double next = (kept.sum - radius) / static_cast<double>(kept.count);
    if (!(next > tau)) return tau;
    tau = next;
    const auto left = keep_above(y, kept.count, tau);
    // Only a strictly smaller set goes on: with rounding, equal ones could cycle.
    if (left.count >= kept.count || left.count == 0) return tau;
    kept = left;
  }
}

/// w = max((v - top) - tau, 0), tau split into two values of type A.
template <typename A>
inline void clip(const A* v, int64_t size, A top, double tau, A* w) {
  const A high = static_cast<A>(tau), low = static_cast<A>(tau - static_cast<double>(high));
  for (int64_t k = 0; k < size; ++k) {
    const A above = ((v[k] - top) - high) - low;
    w[k] = above > 0 ? above : A(0);
  }
}

template <typename A>
inline int64_t project_row(const A* v, int64_t size, double radius, A* w, A* scratch) {
  const A top = checked_max(v, size);
  if (std::isnan(top)) {
    std::fill_n(w, size, top);
    return 0;
  }
  int64_t steps = 0;
  const auto kept = keep_near_top(v, size, top, radius, scratch);
  clip(v, size, top, newton(scratch, kept, radius, steps), w);
  return steps;
}

// ---- short rows: as many side by side as a vector has lanes, entry k of row r at y[k * lanes + r]

constexpr int64_t kShort = 128;
constexpr int kUnroll = 4;  // sums side by side, so that additions need not wait for each other

/// Sum and number of what is above tau, in every lane; Wide is double or A.
template <typename A, typename Wide>
struct Above {
  static constexpr int kParts = kLanes<A> / kLanes<Wide>;
  Vector<Wide> sum[kParts] = {}, count[kParts] = {};

  /// Reads size entries, rounded up to kUnroll.
  Above(const A* y, int64_t size, const Vector<Wide> (&tau)[kParts]) {
    Vector<Wide> sums[kUnroll][kParts] = {}, counts[kUnroll][kParts] = {};
    for (int64_t k = 0; k < size; k += kUnroll)
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u)
#pragma GCC unroll 2
        for (int i = 0; i < kParts; ++i) {
          const A* from = y + (k + u) * kLanes<A> + i * kLanes<Wide>;
          const auto x = load_as<Wide>(from);
          const auto above = x > tau[i];
          sums[u][i] += above ? x : Vector<Wide>{};
          counts[u][i] += above ? broadcast(Wide(1)) : Vector<Wide>{};
        }
    for (int i = 0; i < kParts; ++i) {
      sum[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
      count[i] = (counts[0][i] + counts[1][i]) + (counts[2][i] + counts[3][i]);
    }
  }
};

/// Newton's method from tau in every lane; a lane whose set no longer shrinks keeps its tau. With
/// `free` the first step may also go back: for a tau that is rounded up.
template <typename A, typename Wide>
inline int64_t newton_lanes(const A* y, int64_t size, double radius, bool free,
                            Vector<Wide> (&tau)[Above<A, Wide>::kParts]) {
  using V = Vector<Wide>;
  constexpr int kParts = Above<A, Wide>::kParts;
  Vector<Bits<Wide>> live[kParts];
  V count[kParts];
  for (int i = 0; i < kParts; ++i) {
    live[i] = tau[i] == tau[i];
    count[i] = broadcast(static_cast<Wide>(size + 1));
  }
  for (int64_t steps = 1;; ++steps) {
    const Above<A, Wide> above(y, size, tau);
    auto left = Vector<Bits<Wide>>{};
    for (int i = 0; i < kParts; ++i) {
      const V next = (above.sum[i] - static_cast<Wide>(radius)) / above.count[i];
      live[i] &= (above.count[i] < count[i]) & (above.count[i] > Wide(0));
      if (!free || steps > 1) live[i] &= next > tau[i];
      tau[i] = live[i] ? next : tau[i];
      count[i] = live[i] ? above.count[i] : count[i];
      left |= live[i];
    }
    if (!any(left)) return steps;
  }
}

/// Projects the columns of y in place; a column with NaN or +inf, or of -inf alone becomes NaN.
template <typename A>
inline int64_t project_columns(A* y, int64_t size, double radius) {
  using V = Vector<A>;
  constexpr int kL = kLanes<A>;
  const auto infinity = broadcast(kInfinity<A>);
  V top = -infinity;
  Vector<Bits<A>> usual = top < infinity;
  for (int64_t k = 0; k < size; ++k) {
    const auto x = load<V>(y + k * kL);
    top = larger(x, top);
    usual &= x < infinity;  // not of NaN
  }
  usual &= top > -infinity;
  top = usual ? top : broadcast(std::numeric_limits<A>::quiet_NaN());
  for (int64_t k = 0; k < size; ++k) store(y + k * kL, load<V>(y + k * kL) - top);
  V tau[1] = {usual ? broadcast(static_cast<A>(-radius)) : top};
  int64_t steps = newton_lanes<A, A>(y, size, radius, false, tau);
  V high = tau[0], low = {};
  if constexpr (sizeof(A) == 4) {  // the set is nearly known: its tau in float64
    Doubles wide[2];
    typedef A Narrow __attribute__((vector_size(kWide * sizeof(A))));
    A parts[2][kL];
    store(parts[0], high);
    for (int i = 0; i < 2; ++i) wide[i] = load_doubles(parts[0] + i * kWide);
    steps += newton_lanes<A, double>(y, size, radius, true, wide);
    for (int i = 0; i < 2; ++i) {
      const auto rounded = __builtin_convertvector(wide[i], Narrow);
      store(parts[0] + i * kWide, rounded);
      store(parts[1] + i * kWide,
            __builtin_convertvector(wide[i] - __builtin_convertvector(rounded, Doubles), Narrow));
    }
    high = load<V>(parts[0]);
    low = load<V>(parts[1]);
  }
  for (int64_t k = 0; k < size; ++k) {
    const V above = (load<V>(y + k * kL) - high) - low;
    store(y + k * kL, above <= A(0) ? V{} : above);  // NaN stays
  }
  return steps;
}

template <typename T, typename A = acc_t<T>>
int64_t project_short(Rows<const T> v, int64_t rows, int64_t size, double radius, Rows<T> w) {
  constexpr int kL = kLanes<A>;
  alignas(kVectorBytes) A upright[kL * kShort], columns[kL * kShort];
  constexpr int64_t kStep = std::max(kL, kUnroll);
  const int64_t width = (size + kStep - 1) / kStep * kStep;
  int64_t steps = 0;
  for (int64_t first = 0; first < rows; first += kL) {
    const int64_t count = std::min<int64_t>(kL, rows - first);
    for (int64_t r = 0; r < kL; ++r) {
      const T* row = v[first + std::min(r, count - 1)];
      A* to = upright + r * width;
      for (int64_t k = 0; k < size; ++k) to[k] = static_cast<A>(row[k]);
      for (int64_t k = size; k < width; ++k) to[k] = -kInfinity<A>;
    }
    for (int64_t k = 0; k < width; k += kL)
      transpose_square(upright + k, width, columns + k * kL, kL);
    steps = std::max(steps, project_columns(columns, size, radius));
    for (int64_t k = 0; k < width; k += kL)
      transpose_square(columns + k * kL, kL, upright + k, width);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t k = 0; k < size; ++k) w[first + r][k] = static_cast<T>(upright[r * width + k]);
  }
  return steps;
}

template <typename T, typename A = acc_t<T>>
int64_t simplex_project(Rows<const T> v, int64_t rows, int64_t size, double radius, Rows<T> w,
                        A* scratch) {
  if (size <= kShort) return project_short(v, rows, size, radius, w);
  int64_t steps = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const A* row = load_row(v[r], size, scratch);
    A* out = row_buffer(w[r], scratch);  // a converted row is projected in place
    steps = std::max(steps, project_row(row, size, radius, out, scratch + size));
    store_row(out, size, w[r]);
  }
  return steps;
}

// ---- gradient of the projection ----

/// Sum and number of g where w > 0.
template <typename A>
inline Kept sum_support(const A* g, const A* w, int64_t size) {
  Doubles sum = {}, count = {};
  int64_t k = 0;
  for (; k + kWide <= size; k += kWide) {
    const Mask inside = load_doubles(w + k) > 0.;
    sum += inside ? load_doubles(g + k) : Doubles{};
    count += inside ? broadcast(1.) : Doubles{};
  }
  double total = reduce_sum<double>(sum), number = reduce_sum<double>(count);
  for (; k < size; ++k)
    if (w[k] > 0) {
      total += g[k];
      ++number;
    }
  return {static_cast<int64_t>(number), total};
}

template <typename T, typename A = acc_t<T>>
void simplex_backward(Rows<const T> grad, Rows<const T> w, int64_t rows, int64_t size,
                      Rows<T> grad_v, A* scratch) {
  for (int64_t r = 0; r < rows; ++r) {
    const A* g = load_row(grad[r], size, scratch);
    const A* weight = load_row(w[r], size, scratch + size);
    const auto support = sum_support(g, weight, size);
    const A average =
        static_cast<A>(support.sum / static_cast<double>(std::max<int64_t>(1, support.count)));
    A* out = row_buffer(grad_v[r], scratch + 2 * size);
    for (int64_t k = 0; k < size; ++k) out[k] = weight[k] > 0 ? g[k] - average : A(0);
    store_row(out, size, grad_v[r]);
  }
}

// ---- groups ----

/// x'y in float64.
template <typename A>
inline double inner(const A* x, const A* y, int64_t size) {
  Doubles sum = {};
  int64_t k = 0;
  for (; k + kWide <= size; k += kWide) sum += load_doubles(x + k) * load_doubles(y + k);
  double total = reduce_sum<double>(sum);
  for (; k < size; ++k) total += static_cast<double>(x[k]) * static_cast<double>(y[k]);
  return total;
}

template <typename T, typename A = acc_t<T>>
void shrink(Rows<const T> u, const double* tau, int64_t tau_stride, int64_t rows, int64_t size,
            Rows<T> z, A* scratch) {
  for (int64_t r = 0; r < rows; ++r) {
    const A* row = load_row(u[r], size, scratch);
    const double norm = std::sqrt(inner(row, row, size)), t = tau[r * tau_stride];
    // NaN is not below the threshold, and shows.
    const A factor = norm <= t ? A(0) : static_cast<A>(1 - t / norm);
    A* out = row_buffer(z[r], scratch + size);
    if (norm <= t)
      std::fill_n(out, size, A(0));
    else
      for (int64_t k = 0; k < size; ++k) out[k] = factor * row[k];
    store_row(out, size, z[r]);
  }
}

template <typename T, typename A = acc_t<T>>
void shrink_backward(Rows<const T> grad, Rows<const T> u, const double* tau, int64_t tau_stride,
                     int64_t rows, int64_t size, Rows<T> grad_u, double* grad_tau, A* scratch) {
  for (int64_t r = 0; r < rows; ++r) {
    const A* g = load_row(grad[r], size, scratch);
    const A* row = load_row(u[r], size, scratch + size);
    const double norm = std::sqrt(inner(row, row, size)), t = tau[r * tau_stride];
    A* out = row_buffer(grad_u[r], scratch + 2 * size);
    if (norm <= t) {
      std::fill_n(out, size, A(0));
      grad_tau[r] = 0;
    } else {
      const double along = inner(g, row, size) / norm;
      const A keep = static_cast<A>(1 - t / norm), back = static_cast<A>(t * along / norm / norm);
      for (int64_t k = 0; k < size; ++k) out[k] = keep * g[k] + back * row[k];
      grad_tau[r] = -along;
    }
    store_row(out, size, grad_u[r]);
  }
}

}  // namespace

template <typename T>
RowKernels<T> row_kernels() {
  return {simplex_project<T>, simplex_backward<T>, shrink<T>, shrink_backward<T>};
}
template RowKernels<double> row_kernels();
template RowKernels<float> row_kernels();
template RowKernels<c10::BFloat16> row_kernels();
template RowKernels<c10::Half> row_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
