#pragma once
// Attention SVMs and their certificates as ops (problems and solvers: csrc/svm/solve.h; what the
// certificate proves: csrc/svm/certificate.h; arXiv 2308.16898).
//
//     Wmm = argmin |W|  s.t.  (x_{q,alpha_q} - x_{q,t})^T W z_q >= 1  for all q and t != alpha_q
//
// with the Frobenius or the nuclear norm. Several selected tokens per query: equality among them,
// margin 1 over the masked ones. Everything is float64 on the CPU; outputs are not differentiable.
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "csrc/svm/solve.h"

namespace kktorch {

/// Query q [dz] sees the tokens row_ptr[q] ... row_ptr[q + 1] - 1 of tok, or of x without tok.
struct TokenSets {
  at::Tensor x;        ///< [N, dx] float32 or float64
  at::Tensor z;        ///< [Q, dz] of the same dtype
  at::Tensor row_ptr;  ///< int64 [Q + 1]
  std::optional<at::Tensor> tok;

  /// X [n, T, d], one query Z [n, dz] each.
  static TokenSets cross(const at::Tensor& X, const at::Tensor& Z);
  /// X [n, T, d]; token `position` of every input is its query.
  static TokenSets self(const at::Tensor& X, int64_t position);
  /// X [n, T, d]; every token is a query over the whole sequence, or with `causal` up to itself.
  static TokenSets sequence(const at::Tensor& X, bool causal);
};

/// What a solve found. Tensors are float64.
struct SvmSolution {
  csrc::SvmStatus status;
  at::Tensor w;        ///< [dx, dz]; undefined if infeasible
  at::Tensor lam, nu;  ///< [nnz]; lam is 0 at selected entries, nu but at selected ones
  csrc::Certificate certificate;
  bool support_resolved;
  int64_t epochs, iterations, zero_pairs;
  std::string method, reason;
};

/// @param selection  int64 [Q], positions inside the sets, or bool [nnz], several per query.
/// @param h          [nnz] right-hand sides >= 0 in place of 1 (Frobenius, the oracle).
/// @param lam0       [nnz] start of the multipliers.
/// @throws c10::Error  "svm_solve: expected <what>, but got <values>".
SvmSolution att_svm(const TokenSets& sets, const at::Tensor& selection,
                    const csrc::SvmSettings& settings = {}, const std::optional<at::Tensor>& h = {},
                    const std::optional<at::Tensor>& lam0 = {});

/// Problems side by side, each on one thread; selections as of att_svm.
std::vector<SvmSolution> att_svms(const std::vector<TokenSets>& sets,
                                  const std::vector<at::Tensor>& selections,
                                  const csrc::SvmSettings& settings = {});

/// w [dx, dz]; lam [nnz], >= 0 where it is read, at entries that are not selected.
/// @throws c10::Error  "svm_certificate: expected <what>, but got <values>".
csrc::Certificate svm_certificate(const TokenSets& sets, const at::Tensor& selection,
                                  const at::Tensor& w, const at::Tensor& lam, csrc::SvmNorm norm);

/// The part of a W that several selected tokens (bool [nnz]) determine: the projection of w on
/// S_fin; or, from probabilities s [nnz], the W of minimum norm whose logits differ by
/// log(s_a / s_b) inside the selection, by least squares. And |E(W) - wanted| / |wanted|.
/// @throws c10::Error  "svm_finite_part: expected <what>, but got <values>".
std::tuple<at::Tensor, double> svm_finite_part(const TokenSets& sets, const at::Tensor& selection,
                                               const std::optional<at::Tensor>& w,
                                               const std::optional<at::Tensor>& s);

namespace detail {

/// The op's numbers beside its tensors, float64 [kSvmInfoCount]; python/kktorch/svm reads them by
/// these names.
enum SvmInfo {
  kSvmStatus,
  kSvmLower,
  kSvmUpper,
  kSvmGap,
  kSvmCosine,
  kSvmKappa,
  kSvmRho,
  kSvmMinMargin,
  kSvmNormOfW,
  kSvmDualNorm,
  kSvmSumLam,
  kSvmMarginError,
  kSvmRank,
  kSvmMu,
  kSvmSupportResolved,
  kSvmEpochs,
  kSvmIterations,
  kSvmZeroPairs,
  kSvmMethodCode,
  kSvmReasonCode,
  kSvmInfoCount
};

}  // namespace detail
}  // namespace kktorch
