// Rates of attention_bn on the CPU, without Python between the caller and the kernels:
//
//     build/bin/kktorch_bench --benchmark_filter=step/float32
//
// A step is forward with autograd and the gradients of query, key and value; its products cost
// 14 B H T^2 D operations, 4 of them in forward.
#include <ATen/ops/randn.h>
#include <benchmark/benchmark.h>
#include <torch/csrc/autograd/autograd.h>

#include "ops/attention_bn.h"

namespace {

using at::Tensor;

struct Inputs {
  Tensor query, key, value, grad_out;
  double product;  // operations of one T x T x D product over all heads

  Inputs(const benchmark::State& state, at::ScalarType dtype) {
    const int64_t B = state.range(0), H = state.range(1), T = state.range(2), D = state.range(3);
    for (auto* t : {&query, &key, &value, &grad_out})
      *t = at::randn({B, T, H, D}).to(dtype).transpose(1, 2);
    product = 2.0 * static_cast<double>(B * H * T * T * D);
  }
};

void set_rate(benchmark::State& state, double operations) {
  state.counters["FLOP/s"] =
      benchmark::Counter(operations, benchmark::Counter::kIsIterationInvariantRate);
}

void forward(benchmark::State& state, at::ScalarType dtype) {
  const Inputs in(state, dtype);
  for (auto _ : state) benchmark::DoNotOptimize(kktorch::attention_bn(in.query, in.key, in.value));
  set_rate(state, 2 * in.product);
}

void step(benchmark::State& state, at::ScalarType dtype) {
  const Inputs in(state, dtype);
  const std::vector<Tensor> leaves = {in.query.requires_grad_(), in.key.requires_grad_(),
                                      in.value.requires_grad_()};
  for (auto _ : state) {
    const auto out = kktorch::attention_bn(in.query, in.key, in.value);
    benchmark::DoNotOptimize(torch::autograd::grad({out}, leaves, {in.grad_out}));
  }
  set_rate(state, 7 * in.product);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"B", "H", "T", "D"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const auto& shape : std::vector<std::vector<int64_t>>{
           {1, 3, 197, 64}, {16, 8, 96, 64}, {16, 8, 512, 64}, {2, 8, 2048, 64}})
    b->Args(shape);
}

BENCHMARK_CAPTURE(forward, float32, at::kFloat)->Apply(shapes);
BENCHMARK_CAPTURE(forward, bfloat16, at::kBFloat16)->Apply(shapes);
BENCHMARK_CAPTURE(step, float32, at::kFloat)->Apply(shapes);
BENCHMARK_CAPTURE(step, bfloat16, at::kBFloat16)->Apply(shapes);

}  // namespace
