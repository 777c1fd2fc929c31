// The simplex projection of L. Condat, "Fast projection onto the simplex and the l1 ball" (2016),
// algorithm of section 3, written from its description: one pass keeps candidates v and their
// threshold rho, the candidates that a restart put aside are tried again, and passes over v drop
// what is not above rho.
#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

void project(const float* y, int64_t n, float* x, std::vector<float>& kept,
             std::vector<float>& aside) {
  kept.assign(1, y[0]);
  aside.clear();
  double rho = y[0] - 1.;
  for (int64_t i = 1; i < n; ++i) {
    if (!(y[i] > rho)) continue;
    rho += (y[i] - rho) / static_cast<double>(kept.size() + 1);
    if (rho > y[i] - 1.) {
      kept.push_back(y[i]);
    } else {
      aside.insert(aside.end(), kept.begin(), kept.end());
      kept.assign(1, y[i]);
      rho = y[i] - 1.;
    }
  }
  for (const float value : aside)
    if (value > rho) {
      kept.push_back(value);
      rho += (value - rho) / static_cast<double>(kept.size());
    }
  for (size_t before = 0; before != kept.size();) {
    before = kept.size();
    size_t left = before, end = 0;
    for (size_t j = 0; j < before; ++j) {
      if (kept[j] > rho)
        kept[end++] = kept[j];
      else
        rho += (rho - kept[j]) / static_cast<double>(--left);
    }
    kept.resize(end);
  }
  for (int64_t i = 0; i < n; ++i) x[i] = std::max(static_cast<float>(y[i] - rho), 0.f);
}

}  // namespace

extern "C" void project_rows(const float* y, int64_t rows, int64_t n, float* x) {
#pragma omp parallel
  {
    std::vector<float> kept, aside;
#pragma omp for
    for (int64_t r = 0; r < rows; ++r) project(y + r * n, n, x + r * n, kept, aside);
  }
}
