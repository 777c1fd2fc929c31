#pragma once
// The part of Attention-BN around softmax attention: statistics, normalised queries and keys, and
// their gradients. Implementations of one interface: CPU kernels, a composition of ATen ops for any
// device, CUDA kernels, and nothing at all for ordinary softmax attention.
#include "ops/attention/problem.h"

namespace kktorch::detail {

/// Operands of the softmax attention. Global statistics: q^ = (q - beta mu) r and c^ = (k - mu) r;
/// prefix statistics: q~_i = (q_i - beta mu_i) a_i and x = k - x0. Shapes and dtype of query and
/// key, contiguous.
struct NormalisedOperands {
  at::Tensor query, key;
};

struct Normaliser {
  /// Forward: computes the operands, and the statistics (AttentionResult::statistics).
  NormalisedOperands (*forward)(const AttentionProblem&, at::Tensor& statistics);

  /// The same operands from saved statistics.
  NormalisedOperands (*recompute)(const AttentionProblem&, const at::Tensor& statistics);

  /// Turns the gradients of the operands, in place, into those of query and key; returns that of
  /// beta, [H].
  at::Tensor (*backward)(const AttentionProblem&, const NormalisedOperands&,
                         const at::Tensor& statistics, at::Tensor& grad_query,
                         at::Tensor& grad_key);
};

const Normaliser& cpu_normaliser();
const Normaliser& aten_normaliser();
const Normaliser& plain_normaliser();  // AttentionProblem::plain

#ifdef KKTORCH_WITH_CUDA
const Normaliser& cuda_normaliser();  // global statistics only
#endif

/// On CUDA the composition is the default until the kernels have been verified on a device;
/// KKTORCH_EXPERIMENTAL_CUDA=1 selects the kernels where they are built.
bool use_cuda_kernels();

const Normaliser& normaliser_for(const AttentionProblem& problem);

/// Row-dependent scales exclude the balanced form, whose operands 16-bit types can hold (1/eps
/// overflows float16): prefix problems are computed in the accumulation type and rounded once.
AttentionProblem in_working_dtype(AttentionProblem problem);

/// The values, 0 where the key is ignored: padded values may hold anything, and a probability of 0
/// times NaN would still be NaN.
at::Tensor valid_values(const AttentionProblem& problem);

}  // namespace kktorch::detail
