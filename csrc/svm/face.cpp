#include "csrc/svm/face.h"

#include <algorithm>
#include <numeric>

#include "csrc/svm/dense.h"
#include "csrc/svm/operators.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kIterations = 100, kHalvings = 6;
constexpr double kLittle = 0.01;  // of the largest decrease: no further iteration

using Numbers = std::vector<double>;

double product(const Numbers& a, const Numbers& b) {
  return dense_kernels<double>().dot(a.data(), b.data(), static_cast<int64_t>(a.size()));
}

void add(double s, const Numbers& x, Numbers& y) {
  dense_kernels<double>().axpy(s, x.data(), y.data(), static_cast<int64_t>(x.size()));
}

/// The pairs with lam > 0, and both operators on them.
class Face {
 public:
  Face(const Problem& problem, const Numbers& lam) : problem_(problem) {
    const auto& all = problem.pairs.inequality;
    list_.ptr.push_back(0);
    for (int64_t q = 0; q < problem.sets.Q; ++q) {
      for (int64_t j = all.ptr[q]; j < all.ptr[q + 1]; ++j) {
        if (!(lam[j] > 0)) continue;
        pairs.push_back(j);
        list_.entry.push_back(all.entry[j]);
      }
      list_.ptr.push_back(list_.size());
    }
  }

  Numbers of(const Numbers& values) const {
    Numbers part;
    for (const int64_t j : pairs) part.push_back(values[j]);
    return part;
  }
  Numbers margins(const Numbers& W) const {
    Numbers values(pairs.size());
    pair_margins(problem_.sets, problem_.pairs.anchor, list_, W.data(), values.data());
    return values;
  }
  Numbers adjoint(const Numbers& lam) const {
    Numbers W(problem_.N);
    pair_adjoint(problem_.sets, problem_.pairs.anchor, list_, lam.data(), W.data());
    return W;
  }

  std::vector<int64_t> pairs;

 private:
  const Problem& problem_;
  EntryList list_;
};

struct Change {
  Numbers lam, W;
};

/// Towards the solution of G lam = 1 on the face.
Change conjugate_gradients(const Face& face, const Numbers& scale, const Numbers& W) {
  const size_t count = face.pairs.size();
  Change change{Numbers(count), Numbers(W.size())};
  Numbers residual = face.margins(W), towards(count), scaled(count);
  for (double& value : residual) value = 1 - value;
  double size = 0, largest = 0;
  for (int64_t k = 0; k < kIterations; ++k) {
    for (size_t j = 0; j < count; ++j) scaled[j] = scale[j] * residual[j];
    const double previous = size;
    size = product(scaled, residual);
    const double beta = previous > 0 ? size / previous : 0;
    for (size_t j = 0; j < count; ++j) towards[j] = scaled[j] + beta * towards[j];
    const auto V = face.adjoint(towards);
    const double curvature = product(V, V);
    if (!(curvature > 0)) break;
    const double step = size / curvature;
    add(step, towards, change.lam);
    add(step, V, change.W);
    add(-step, face.margins(V), residual);
    const double decrease = step * size;
    largest = std::max(largest, decrease);
    if (!(decrease > kLittle * largest)) break;
  }
  return change;
}

}  // namespace

bool face_step(const Problem& problem, const Numbers& scale, Numbers& lam, Numbers& W) {
  const Face face(problem, lam);
  const auto count = static_cast<int64_t>(face.pairs.size());
  if (count == 0 || count > problem.N) return false;  // more pairs than that are dependent
  const auto start = face.of(lam);
  const auto change = conjugate_gradients(face, face.of(scale), W);
  const auto objective = [](const Numbers& values, const Numbers& sum) {
    return product(sum, sum) / 2 - std::accumulate(values.begin(), values.end(), 0.0);
  };
  const double before = objective(start, W);
  double step = 1;
  for (int64_t halving = 0; halving < kHalvings; ++halving, step /= 2) {
    Numbers next = start;
    add(step, change.lam, next);
    for (double& value : next) value = std::max(value, 0.0);
    auto sum = face.adjoint(next);
    if (!(objective(next, sum) < before)) continue;
    for (size_t j = 0; j < next.size(); ++j) lam[face.pairs[j]] = next[j];
    W = std::move(sum);
    return true;
  }
  return false;
}

}  // namespace kktorch::csrc
