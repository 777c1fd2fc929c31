#pragma once
// Primal-dual hybrid gradient with restarts for attention SVMs of either norm (Chambolle and Pock,
// J. Math. Imaging Vision 2011; restarts after Applegate et al., PDLP, NeurIPS 2021). Torch-free.
//
//     min_W max_{lam >= 0} |W| + lam.(1 - A(W))
//     W+   = prox_tau(W + tau A*(lam))           nuclear: singular values shrunk by tau
//     lam+ = [lam + sigma (1 - A(2 W+ - W))]+    Frobenius (|W|^2 / 2): V / (1 + tau)
//
// tau = s / L, sigma = 1 / (s L), L >= |A|; s balances the movements of W and lam and is reset at
// every restart, which continues from the better of iterate and average. Stops when the best
// primal and the best dual point seen have gap <= tol. Iteration cost 4 (Q dx dz + nnz dx) and one
// SVD of [dx, dz].
#include "csrc/svm/problem.h"

namespace kktorch::csrc {

/// Improves `best` (of the Frobenius problem, min A(W) > 0) for settings.norm. Returns iterations.
int64_t primal_dual(const Problem& problem, const SvmSettings& settings, Monitor& monitor,
                    Candidate& best);

}  // namespace kktorch::csrc
