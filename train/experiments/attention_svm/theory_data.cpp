#include "train/experiments/attention_svm/theory_data.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <cmath>

namespace kktorch::attention_svm {
namespace {

using at::Tensor;

constexpr uint64_t kWeightSeed = 1000000;  // added to the seed of the data

at::Generator generator_of(uint64_t seed) { return at::make_generator<at::CPUGeneratorImpl>(seed); }

Tensor normal(at::IntArrayRef shape, at::Generator& generator) {
  return at::randn(shape, generator, at::kFloat);
}

/// Rows (last dimension) of norm 1.
Tensor unit(const Tensor& x) { return x / x.norm(2, -1, true); }

std::vector<double> numbers(const Tensor& x) {
  const auto flat = x.to(at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

std::vector<double> signs(const Tensor& x) {
  auto values = numbers(x);
  for (auto& value : values) value = value > 0 ? 1 : -1;
  return values;
}

}  // namespace

csrc::AttentionModel Problem::model() const {
  return {.sets = {.x = x.data(),
                   .z = z.data(),
                   .row_ptr = row_ptr.data(),
                   .tok = nullptr,
                   .N = n * T,
                   .dx = d,
                   .Q = n,
                   .dz = d},
          .labels = labels.data(),
          .head = head,
          .v = v.data(),
          .units = head == csrc::AttentionHead::kRelu ? d : 1,
          .lbd = 0,
          .loss = loss,
          .inputs = static_cast<double>(n)};
}

std::vector<int64_t> Problem::optimal() const {
  std::vector<int64_t> best(n);
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double> score(T);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t c = 0; c < d; ++c) score[t] += labels[i] * v[c] * token(i, t)[c];
    best[i] = std::max_element(score.begin(), score.end()) - score.begin();
  }
  return best;
}

std::vector<int64_t> regular_row_ptr(int64_t n, int64_t T) {
  std::vector<int64_t> row_ptr(n + 1);
  for (int64_t i = 0; i <= n; ++i) row_ptr[i] = i * T;
  return row_ptr;
}

Problem draw_linear(uint64_t seed, int64_t n, int64_t T, int64_t d) {
  auto generator = generator_of(seed);
  Problem p{.n = n, .T = T, .d = d, .row_ptr = regular_row_ptr(n, T)};
  p.v = numbers(unit(normal({d}, generator)));
  p.labels = signs(normal({n}, generator));
  p.x = numbers(unit(normal({n, T, d}, generator)));
  p.z = numbers(unit(normal({n, d}, generator)));
  return p;
}

Problem draw_relu(uint64_t seed, int64_t n, int64_t T, int64_t d) {
  auto generator = generator_of(seed);
  Problem p{
      .n = n, .T = T, .d = d, .head = csrc::AttentionHead::kRelu, .row_ptr = regular_row_ptr(n, T)};
  const auto V = normal({d, d}, generator);
  p.v = numbers(V / V.norm());
  p.x = numbers(unit(normal({n, T, d}, generator)));
  p.labels = signs(normal({n}, generator));
  p.z = numbers(unit(normal({n, d}, generator)));
  return p;
}

std::vector<double> draw_weights(uint64_t seed, int64_t count, int64_t d) {
  auto generator = generator_of(seed + kWeightSeed);
  const auto uniform = at::rand({count}, generator, at::kFloat);
  return numbers((2 * uniform.to(at::kDouble) - 1) / std::sqrt(static_cast<double>(d)));
}

std::vector<double> draw_normal(uint64_t seed, const std::vector<int64_t>& shape, double scale) {
  auto generator = generator_of(seed);
  return numbers(scale * normal(shape, generator));
}

}  // namespace kktorch::attention_svm
