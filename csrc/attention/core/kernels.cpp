// Built once per instruction-set tier (KKTORCH_TIER).
#include "csrc/attention/core/backward.h"
#include "csrc/attention/core/forward.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

/// action(pass) for the pass over the problem in the arithmetic that it allows.
template <template <typename, typename> typename Pass, typename T, typename Action>
auto with_pass(const CoreProblem<T>& problem, void* scratch, const Action& action) {
#ifdef KKTORCH_AMX
  if constexpr (std::is_same_v<T, float>)
    if (problem.split_floats) return action(Pass<T, SplitFloats>(problem, scratch));
#endif
  return action(Pass<T, Arithmetic<T>>(problem, scratch));
}

template <typename T>
void forward(const CoreProblem<T>& problem, const CoreResult<T>& result, int64_t b, int64_t h,
             Block queries, void* scratch) {
  [[maybe_unused]] const MultiplySession session;
  with_pass<ForwardPass>(problem, scratch, [&](auto pass) { pass.run(result, b, h, queries); });
}

template <typename T>
int64_t forward_scratch(const CoreProblem<T>& problem) {
  return with_pass<ForwardPass>(problem, nullptr, [](auto pass) { return pass.scratch_size(); });
}

template <typename T, typename A = acc_t<T>>
void forward_part(const CoreProblem<T>& problem, int64_t b, int64_t h, Block queries, Block keys,
                  A* sums, void* scratch) {
  [[maybe_unused]] const MultiplySession session;
  with_pass<ForwardPass>(problem, scratch,
                         [&](auto pass) { pass.run_part(b, h, queries, keys, sums); });
}

template <typename T, typename A = acc_t<T>>
void join_parts(const CoreProblem<T>& problem, const CoreResult<T>& result, int64_t b, int64_t h,
                Block queries, const A* sums, int64_t parts, void* scratch) {
  ForwardPass<T>(problem, scratch).join(result, b, h, queries, sums, parts);
}

template <typename T, typename A = acc_t<T>>
void backward(const CoreProblem<T>& problem, const CoreGradients<T>& gradients, int64_t b,
              int64_t hk, Block keys, A* grad_query, A* grad_key, void* scratch) {
  [[maybe_unused]] const MultiplySession session;
  with_pass<BackwardPass>(
      problem, scratch, [&](auto pass) { pass.run(gradients, b, hk, keys, grad_query, grad_key); });
}

template <typename T>
int64_t backward_scratch(const CoreProblem<T>& problem) {
  return with_pass<BackwardPass>(problem, nullptr, [](auto pass) { return pass.scratch_size(); });
}

}  // namespace

template <typename T>
CoreKernels<T> core_kernels() {
  return {forward<T>,  forward_scratch<T>,  forward_part<T>,   join_parts<T>,
          backward<T>, backward_scratch<T>, finish_queries<T>, finish_keys<T>};
}
template CoreKernels<float> core_kernels();
template CoreKernels<c10::BFloat16> core_kernels();
#ifndef KKTORCH_AMX  // which has nothing for the others
template CoreKernels<double> core_kernels();
template CoreKernels<c10::Half> core_kernels();
#endif

}  // namespace kktorch::csrc::KKTORCH_TIER
