#include "csrc/convex/working_groups.h"

#include <algorithm>

#include "csrc/convex/group_design.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kSmallRead = 1 << 20;  // multiply-adds of a product: cheaper than a set
constexpr int64_t kFewest = 32;          // groups that may come in
constexpr int64_t kMostSteps = 500;
constexpr double kLeastCost = 0.02, kMostCost = 2. / 3;  // of a step, in reads

/// Time of a step on `size` of `count` groups, in reads, roughly. A read of token ids has one
/// addition where a group has d columns, taken to be four times as slow.
template <typename T>
double step_cost(const Samples<T>& samples, int64_t size, int64_t count, int64_t d) {
  const double share = static_cast<double>(size) / static_cast<double>(count);
  return samples.ids ? share * static_cast<double>(d) / 4 : 2 * share;
}

}  // namespace

template <typename T>
std::vector<int64_t> working_groups(const ConvexProgram<T>& program, const Samples<T>& samples,
                                    const std::vector<T>& Z, const std::vector<T>& G) {
  const auto& penalty = groups_of(program);
  const int64_t d = penalty.d(), count = static_cast<int64_t>(Z.size()) / d;
  if (samples.N * count * (samples.ids ? 1 : d) < kSmallRead) return {};
  std::vector<int64_t> chosen, others;
  std::vector<double> norms(count);
  for (int64_t g = 0; g < count; ++g) {
    if (!penalty.is_zero(Z.data(), g)) {
      chosen.push_back(g);
    } else if (penalty.alive()[g] && (norms[g] = penalty.norm(G.data(), g)) > program.beta) {
      others.push_back(g);
    }
  }
  const auto more = std::min<size_t>(others.size(), std::max<size_t>(kFewest, chosen.size()));
  std::partial_sort(others.begin(), others.begin() + more, others.end(), [&](int64_t a, int64_t b) {
    return norms[a] != norms[b] ? norms[a] > norms[b] : a < b;
  });
  chosen.insert(chosen.end(), others.begin(), others.begin() + more);
  const auto size = static_cast<int64_t>(chosen.size());
  const int64_t live = std::count(penalty.alive().begin(), penalty.alive().end(), 1);
  const int64_t n = samples.D / d;
  std::vector<uint8_t> is_used(n);
  for (const int64_t g : chosen) is_used[g % n] = 1;
  const int64_t tokens = std::count(is_used.begin(), is_used.end(), 1);
  if (step_cost(samples, size, live, d) > kMostCost || samples.N * tokens * d > kMostCopied)
    return {};
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

template <typename T>
void iterate_on_groups(const ConvexProgram<T>& program, const Samples<T>& samples,
                       const std::vector<int64_t>& groups, std::vector<T>& Z, Round& round,
                       const std::function<bool(double, double)>& after_step) {
  const int64_t d = groups_of(program).d(), size = static_cast<int64_t>(groups.size());
  const GroupDesign<T> design(samples, program.c, d, groups, program.design->parallel());
  GroupPenalty<T> penalty(size, d, program.design->parallel());
  auto own = program;
  own.design = &design;
  own.penalty = &penalty;
  std::vector<T> z(size * d);
  for (int64_t j = 0; j < size; ++j) std::copy_n(Z.data() + groups[j] * d, d, z.data() + j * d);
  const auto count = static_cast<int64_t>(Z.size()) / d;
  const double cost = std::max(kLeastCost, step_cost(samples, size, count, d));
  // A read follows: steps that take half of its time are worth it.
  const auto least = static_cast<int64_t>(std::clamp(0.5 / cost, 3., 10.));
  Fista<T> fista(own, round.lip);
  fista.start(std::move(z));
  for (int64_t step = 1; step <= kMostSteps; ++step) {
    fista.step();
    if (!after_step(fista.objective(), cost)) break;
    if (step >= least && fista.objective() - fista.best_dual() <= round.gap) break;
  }
  for (int64_t j = 0; j < size; ++j)
    std::copy_n(fista.Z().data() + j * d, d, Z.data() + groups[j] * d);
  round.lip = fista.lip();
  round.backtracks = fista.backtracks();
  round.restarts = fista.restarts();
}

#define INSTANTIATE(T)                                                                        \
  template std::vector<int64_t> working_groups(const ConvexProgram<T>&, const Samples<T>&,    \
                                               const std::vector<T>&, const std::vector<T>&); \
  template void iterate_on_groups(const ConvexProgram<T>&, const Samples<T>&,                 \
                                  const std::vector<int64_t>&, std::vector<T>&, Round&,       \
                                  const std::function<bool(double, double)>&);
INSTANTIATE(double)
INSTANTIATE(float)
#undef INSTANTIATE

}  // namespace kktorch::csrc
