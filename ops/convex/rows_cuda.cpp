#include "ops/convex/rows_cuda.h"

#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "csrc/convex/rows_cuda.h"

namespace kktorch::detail {

using at::Tensor;

void project_rows_cuda(const Tensor& v, double radius, const Tensor& w) {
  const c10::cuda::CUDAGuard guard(v.device());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, v.scalar_type(), "simplex_project", [&] {
        C10_CUDA_CHECK(csrc::launch_simplex_project(
            v.const_data_ptr<scalar_t>(), v.size(0), v.size(1), radius,
            w.mutable_data_ptr<scalar_t>(), c10::cuda::getCurrentCUDAStream()));
      });
}

void shrink_rows_cuda(const Tensor& u, const Tensor& tau, const Tensor& z) {
  const c10::cuda::CUDAGuard guard(u.device());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, u.scalar_type(), "group_soft_threshold", [&] {
        C10_CUDA_CHECK(csrc::launch_group_shrink(
            u.const_data_ptr<scalar_t>(), tau.const_data_ptr<double>(),
            static_cast<int64_t>(tau.dim() > 0), u.size(0), u.size(1),
            z.mutable_data_ptr<scalar_t>(), c10::cuda::getCurrentCUDAStream()));
      });
}

}  // namespace kktorch::detail
