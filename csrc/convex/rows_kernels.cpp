// Built once per instruction-set tier (KKTORCH_TIER). Long rows: one row per vector loop. Short
// rows, simplex projection only: a block of rows is transposed, and a vector lane is a row.
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
  typedef A Narrow __attribute__((vector_size(kWide * sizeof(A))));
  return __builtin_convertvector(load<Narrow>(from), Doubles);
}

template <typename A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

/// Appends the values y[0..kWide) whose bit of `mask` is set to `to`, which may lie before y or at
/// y; may write kWide values. Returns how many there are.
template <typename A>
inline int64_t append(const A* y, Mask mask, A* to) {
#if defined(__AVX512VL__)
  const auto bits = static_cast<__mmask8>(_mm512_movepi64_mask(reinterpret_cast<__m512i>(mask)));
  if constexpr (sizeof(A) == 4) {
    _mm256_storeu_ps(to, _mm256_maskz_compress_ps(bits, _mm256_loadu_ps(y)));
  } else {
    _mm512_storeu_pd(to, _mm512_maskz_compress_pd(bits, _mm512_loadu_pd(y)));
  }
  return __builtin_popcount(bits);
#else
  int64_t count = 0;
  for (int i = 0; i < kWide; ++i) {
    to[count] = y[i];
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

/// Fills y[count..] with -inf up to the next whole vector.
template <typename A>
inline void pad(A* y, int64_t count) {
  for (int64_t i = 0; i < kWide; ++i) y[count + i] = -kInfinity<A>;
}

/// Keeps what is above tau of y[0..count), in place and in order; y has room for kWide more.
template <typename A>
inline Kept keep_above(A* y, int64_t count, double tau) {
  const auto threshold = broadcast(tau);
  Doubles sum = {};
  int64_t kept = 0;
  for (int64_t i = 0; i < count; i += kWide) {
    const auto values = load_doubles(y + i);
    const Mask above = values > threshold;
    sum += above ? values : Doubles{};
    kept += append(y + i, above, y + kept);
  }
  pad(y, kept);
  return {kept, reduce_sum<double>(sum)};
}

/// The largest entry; NaN if the row holds NaN or +inf, or nothing but -inf.
template <typename A>
inline A checked_max(const A* v, int64_t size) {
  constexpr int kStep = kLanes<A>;
  auto top = broadcast(-kInfinity<A>);
  auto sum = Vector<A>{};  // NaN as soon as an entry is NaN or +inf
  int64_t k = 0;
  for (; k + kStep <= size; k += kStep) {
    const auto x = load<Vector<A>>(v + k);
    top = larger(x, top);
    sum += x * A(0) == Vector<A>{} || x == -kInfinity<A> ? Vector<A>{} : x;
  }
  A result = reduce_max<A>(top), strange = reduce_sum<A>(sum);
  for (; k < size; ++k) {
    result = std::max(result, v[k]);
    if (std::isnan(v[k]) || v[k] == kInfinity<A>) strange = v[k];
  }
  return strange != 0 || result == -kInfinity<A> ? std::numeric_limits<A>::quiet_NaN() : result;
}

/// y = v - top for the entries above -radius; y has room for size + kWide.
template <typename A>
inline Kept keep_near_top(const A* v, int64_t size, A top, double radius, A* y) {
  // Rounded down: what is kept for nothing leaves in the first step.
  const A low = std::nextafter(static_cast<A>(-radius), -kInfinity<A>);
  const auto tops = broadcast(static_cast<double>(top)), lows = broadcast(static_cast<double>(low));
  Doubles sum = {};
  int64_t kept = 0, k = 0;
  A block[2 * kWide];
  const auto take = [&](const A* from) {
    const auto exact = load_doubles(from) - tops;
    for (int i = 0; i < kWide; ++i) block[i] = static_cast<A>(exact[i]);
    const auto values = load_doubles(block);
    const Mask above = values > lows;
    sum += above ? values : Doubles{};
    kept += append(block, above, y + kept);
  };
  for (; k + kWide <= size; k += kWide) take(v + k);
  if (k < size) {
    A tail[kWide];
    std::fill_n(tail, kWide, -kInfinity<A>);
    std::copy_n(v + k, size - k, tail);
    take(tail);
  }
  pad(y, kept);
  return {kept, reduce_sum<double>(sum)};
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

// ---- short rows: kWide rows side by side, entry k of row r at y[k * kWide + r] ----

constexpr int64_t kShort = 24;

struct Columns {
  double y[kShort * kWide];
};

/// Newton's method in every lane; a lane whose set no longer shrinks keeps its tau.
inline int64_t project_columns(Columns& c, int64_t size, double radius) {
  auto top = broadcast(-kInfinity<double>);
  Mask strange = {};
  for (int64_t k = 0; k < size; ++k) {
    const auto x = load<Doubles>(c.y + k * kWide);
    top = larger(x, top);
    strange |= (x != x) | (x == kInfinity<double>);
  }
  strange |= top == -kInfinity<double>;
  auto tau = broadcast(-radius), count = broadcast(static_cast<double>(size + 1));
  for (int64_t k = 0; k < size; ++k) store(c.y + k * kWide, load<Doubles>(c.y + k * kWide) - top);
  Mask live = ~strange;
  int64_t steps = 0;
  while (reduce<int64_t>(live, [](auto a, auto b) { return a | b; })) {
    Doubles sum = {}, left = {};
    for (int64_t k = 0; k < size; ++k) {
      const auto x = load<Doubles>(c.y + k * kWide);
      const Mask above = x > tau;
      sum += above ? x : Doubles{};
      left += above ? broadcast(1.) : Doubles{};
    }
    const auto next = (sum - radius) / left;
    live &= (left < count) & (left > 0.) & (next > tau);
    tau = live ? next : tau;
    count = live ? left : count;
    ++steps;
  }
  for (int64_t k = 0; k < size; ++k) {
    const auto above = load<Doubles>(c.y + k * kWide) - tau;
    const auto w = above > 0. ? above : Doubles{};
    store(c.y + k * kWide, strange ? broadcast(std::numeric_limits<double>::quiet_NaN()) : w);
  }
  return steps;
}

template <typename T>
int64_t project_short(Rows<const T> v, int64_t rows, int64_t size, double radius, Rows<T> w) {
  Columns c;
  int64_t steps = 0;
  for (int64_t first = 0; first < rows; first += kWide) {
    const int64_t count = std::min<int64_t>(kWide, rows - first);
    for (int64_t r = 0; r < kWide; ++r) {
      const T* row = v[first + std::min(r, count - 1)];
      for (int64_t k = 0; k < size; ++k) c.y[k * kWide + r] = static_cast<double>(row[k]);
    }
    steps = std::max(steps, project_columns(c, size, radius));
    for (int64_t r = 0; r < count; ++r)
      for (int64_t k = 0; k < size; ++k)
        w[first + r][k] = static_cast<T>(static_cast<acc_t<T>>(c.y[k * kWide + r]));
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
