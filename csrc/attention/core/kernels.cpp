// Built once per instruction-set tier (KKTORCH_TIER).
#include "csrc/attention/core/backward.h"
#include "csrc/attention/core/forward.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

template <typename T>
void forward(const CoreProblem<T>& problem, const CoreResult<T>& result, int64_t b, int64_t h,
             Block queries, void* scratch) {
  ForwardPass<T>(problem, scratch).run(result, b, h, queries);
}

template <typename T>
int64_t forward_scratch(const CoreProblem<T>& problem) {
  return ForwardPass<T>(problem, nullptr).scratch_size();
}

template <typename T, typename A = acc_t<T>>
void backward(const CoreProblem<T>& problem, const CoreGradients<T>& gradients, int64_t b,
              int64_t hk, Block keys, A* grad_query, A* grad_key, void* scratch) {
  BackwardPass<T>(problem, scratch).run(gradients, b, hk, keys, grad_query, grad_key);
}

template <typename T>
int64_t backward_scratch(const CoreProblem<T>& problem) {
  return BackwardPass<T>(problem, nullptr).scratch_size();
}

}  // namespace

template <typename T>
CoreKernels<T> core_kernels() {
  return {forward<T>,          forward_scratch<T>, backward<T>,
          backward_scratch<T>, finish_queries<T>,  finish_keys<T>};
}
template CoreKernels<double> core_kernels();
template CoreKernels<float> core_kernels();
template CoreKernels<c10::BFloat16> core_kernels();
template CoreKernels<c10::Half> core_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
