// The CUDA kernels of csrc/attention behind the Normaliser interface; global statistics only.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "csrc/attention/bn_global_cuda.h"
#include "ops/attention/normalise.h"

namespace kktorch::detail {
namespace {

using at::Tensor;

template <typename T>
csrc::DeviceHeads<T> heads_of(const Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
}

csrc::BnShape shape_of(const AttentionProblem& p) {
  return {p.B(), p.H(), p.Hk(), p.M(), p.N(), p.D()};
}

/// The problem for the kernels; `workspace` keeps their scratch memory alive until they are
/// launched, and so does `total_weight` [B], which only the backward pass defines.
template <typename T>
csrc::DeviceProblem<T> device_problem(const AttentionProblem& p, const Tensor& statistics,
                                      const Tensor& workspace, const Tensor& total_weight = {}) {
  using A = csrc::acc_t<T>;
  const auto data = [](const Tensor& t) { return t.defined() ? t.const_data_ptr<A>() : nullptr; };
  return {.shape = shape_of(p),
          .weight = data(p.key_weight),
          .total_weight = data(total_weight),
          .beta = p.beta.const_data_ptr<A>(),
          .statistics = statistics.data_ptr<A>(),
          .workspace = workspace.data_ptr<A>(),
          .eps = static_cast<A>(p.eps),
          .use_std = p.use_std};
}

Tensor workspace_for(const AttentionProblem& p) {
  return at::empty({csrc::bn_workspace_size(shape_of(p))}, p.beta.options());
}

NormalisedOperands operands(const AttentionProblem& p, const Tensor& statistics, bool measure) {
  const c10::cuda::CUDAGuard guard(p.query.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const NormalisedOperands out{at::empty(p.query.sizes(), p.query.options()),
                               at::empty(p.key.sizes(), p.key.options())};
  const auto workspace = workspace_for(p);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, p.query.scalar_type(), "attention_bn", [&] {
        C10_CUDA_CHECK(csrc::launch_bn_forward<scalar_t>(
            device_problem<scalar_t>(p, statistics, workspace), measure,
            heads_of<const scalar_t>(p.query), heads_of<const scalar_t>(p.key),
            heads_of<scalar_t>(out.query), heads_of<scalar_t>(out.key), stream));
      });
  return out;
}

NormalisedOperands forward(const AttentionProblem& p, Tensor& statistics) {
  statistics = at::zeros({p.B(), p.Hk(), 3, p.D()}, p.beta.options());
  return operands(p, statistics, true);
}

NormalisedOperands recompute(const AttentionProblem& p, const Tensor& statistics) {
  return operands(p, statistics, false);
}

Tensor backward(const AttentionProblem& p, const NormalisedOperands& operands,
                const Tensor& statistics, Tensor& grad_query, Tensor& grad_key) {
  const c10::cuda::CUDAGuard guard(p.query.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto workspace = workspace_for(p);
  const auto total_weight = p.key_weight.defined() ? p.key_weight.sum(1) : Tensor();
  const auto grad_beta = at::empty({p.B(), p.H()}, p.beta.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, p.query.scalar_type(), "_attention_bn_backward", [&] {
        C10_CUDA_CHECK(csrc::launch_bn_backward<scalar_t>(
            device_problem<scalar_t>(p, statistics, workspace, total_weight),
            heads_of<const scalar_t>(operands.query), heads_of<const scalar_t>(operands.key),
            heads_of<scalar_t>(grad_query), heads_of<scalar_t>(grad_key),
            grad_beta.data_ptr<csrc::acc_t<scalar_t>>(), stream));
      });
  return grad_beta.sum(0);
}

}  // namespace

const Normaliser& cuda_normaliser() {
  static constexpr Normaliser normaliser{forward, recompute, backward};
  return normaliser;
}

}  // namespace kktorch::detail
