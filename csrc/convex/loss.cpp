#include "csrc/convex/loss.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace kktorch::csrc {
namespace {

constexpr int64_t kBlock = 1024;  // rows of a partial sum

double xlogx(double p) { return p > 0 ? p * std::log(p) : 0; }

/// Softmax of one row into p (may be null); returns logsumexp.
template <typename T>
double softmax(const T* a, int64_t c, double* p) {
  double top = a[0];
  for (int64_t l = 1; l < c; ++l) top = std::max<double>(top, a[l]);
  double sum = 0;
  for (int64_t l = 0; l < c; ++l) {
    const double e = std::exp(a[l] - top);
    if (p) p[l] = e;
    sum += e;
  }
  if (p)
    for (int64_t l = 0; l < c; ++l) p[l] /= sum;
  return top + std::log(sum);
}

template <typename T>
double cross_entropy_row(const T* a, const Targets<T>& Y, int64_t row, int64_t c) {
  double fit = 0, mass = 1;
  if (Y.ids) {
    fit = a[Y.ids[row]];
  } else {
    mass = 0;
    for (int64_t l = 0; l < c; ++l) {
      const double q = Y.values[row * c + l];
      fit += q * a[l];
      mass += q;
    }
  }
  return mass * softmax(a, c, nullptr) - fit;
}

struct Sums {
  double RR = 0, RY = 0;
};

/// f(first, count) for blocks of rows; the partial sums in order.
template <typename S, typename F>
std::vector<S> by_block(int64_t rows, const Parallel& parallel, const F& f) {
  const int64_t blocks = (rows + kBlock - 1) / kBlock;
  std::vector<S> parts(blocks);
  parallel(blocks,
           [&](int64_t b) { parts[b] = f(b * kBlock, std::min(kBlock, rows - b * kBlock)); });
  return parts;
}

/// -D of the rows at s for the losses whose dual is an entropy.
template <typename T>
double entropy_of_rows(Loss loss, const T* R, const Targets<T>& Y, int64_t first, int64_t count,
                       int64_t c, double s) {
  double sum = 0;
  for (int64_t i = first; i < first + count; ++i)
    for (int64_t l = 0; l < c; ++l) {
      const double r = R[i * c + l];
      if (loss == Loss::kLogistic) {
        const double q = std::clamp(-s * Y.values[i * c + l] * r, 0., 1.);
        sum += xlogx(q) + xlogx(1 - q);
      } else {
        const double q = Y.ids ? Y.ids[i] == l : double(Y.values[i * c + l]);
        sum += xlogx(q + s * r);
      }
    }
  return sum;
}

}  // namespace

double smoothness(Loss loss) {
  switch (loss) {
    case Loss::kHalfSquared:
      return 1;
    case Loss::kSquared:
      return 2;
    case Loss::kLogistic:
      return 0.25;
    default:
      return 0.5;
  }
}

template <typename T>
double loss_of_rows(Loss loss, const T* A, const Targets<T>& Y, int64_t first, int64_t count,
                    int64_t c) {
  double sum = 0;
  if (loss == Loss::kCrossEntropy) {
    for (int64_t i = 0; i < count; ++i) sum += cross_entropy_row(A + i * c, Y, first + i, c);
    return sum;
  }
  const T* y = Y.values + first * c;
  for (int64_t j = 0; j < count * c; ++j) {
    if (loss == Loss::kLogistic) {
      const double margin = double(y[j]) * A[j];
      sum += std::max(0., -margin) + std::log1p(std::exp(-std::abs(margin)));
    } else {
      const double difference = double(A[j]) - y[j];
      sum += difference * difference;
    }
  }
  return loss == Loss::kHalfSquared ? sum / 2 : sum;
}

template <typename T>
void gradient_of_rows(Loss loss, const T* A, const Targets<T>& Y, int64_t first, int64_t count,
                      int64_t c, T* R) {
  if (loss == Loss::kCrossEntropy) {
    std::vector<double> p(c);
    for (int64_t i = 0; i < count; ++i) {
      softmax(A + i * c, c, p.data());
      for (int64_t l = 0; l < c; ++l)
        R[i * c + l] = static_cast<T>(
            p[l] - (Y.ids ? double(Y.ids[first + i] == l) : double(Y.values[(first + i) * c + l])));
    }
    return;
  }
  const T* y = Y.values + first * c;
  for (int64_t j = 0; j < count * c; ++j) {
    if (loss == Loss::kLogistic) {
      const double margin = double(y[j]) * A[j];
      const double e = std::exp(-std::abs(margin));
      R[j] = static_cast<T>(-y[j] * (margin > 0 ? e / (1 + e) : 1 / (1 + e)));
    } else {
      R[j] = (loss == Loss::kSquared ? 2 : 1) * (A[j] - y[j]);
    }
  }
}

template <typename T>
DualPoint dual_point(Loss loss, const T* R, const Targets<T>& Y, int64_t rows, int64_t c, double dn,
                     double beta, const Parallel& parallel, double shrink) {
  const double bound = dn > 0 ? beta / dn : std::numeric_limits<double>::infinity();
  if (loss == Loss::kLogistic || loss == Loss::kCrossEntropy) {
    const double s = std::min(1., bound) * shrink;
    double entropy = 0;
    for (const double part : by_block<double>(rows, parallel, [&](int64_t first, int64_t count) {
           return entropy_of_rows(loss, R, Y, first, count, c, s);
         }))
      entropy += part;
    return {-entropy, s};
  }
  Sums total;
  for (const auto& part : by_block<Sums>(rows * c, parallel, [&](int64_t first, int64_t count) {
         Sums sums;
         for (int64_t j = first; j < first + count; ++j) {
           sums.RR += double(R[j]) * R[j];
           sums.RY += double(R[j]) * Y.values[j];
         }
         return sums;
       })) {
    total.RR += part.RR;
    total.RY += part.RY;
  }
  if (!(total.RR > 0)) return {0, 0};
  const double curvature = loss == Loss::kSquared ? 0.25 : 0.5;
  const double best = -total.RY / (2 * curvature * total.RR);
  const double s = std::clamp(best, -bound, bound) * shrink;
  return {-curvature * s * s * total.RR - s * total.RY, s};
}

#define INSTANTIATE(T)                                                                         \
  template double loss_of_rows(Loss, const T*, const Targets<T>&, int64_t, int64_t, int64_t);  \
  template void gradient_of_rows(Loss, const T*, const Targets<T>&, int64_t, int64_t, int64_t, \
                                 T*);                                                          \
  template DualPoint dual_point(Loss, const T*, const Targets<T>&, int64_t, int64_t, double,   \
                                double, const Parallel&, double);
INSTANTIATE(double)
INSTANTIATE(float)
#undef INSTANTIATE

}  // namespace kktorch::csrc
