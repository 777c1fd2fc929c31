#pragma once
// Gradient descent on single-layer multi-head attention (arXiv 2310.12680): parameters,
// initialisations, data models, linearised model and the bounds that hold by proof. Model and
// gradients: ops/mhgd.h.
#include <torch/torch.h>

#include <cstdint>
#include <string>

#include "train/dynamics/descent.h"
#include "train/dynamics/lanczos.h"
#include "train/dynamics/ntk.h"

namespace kktorch::dynamics::multihead {

struct Params {
  at::Tensor W, U;  // [H, d, d], [H, T, d]

  int64_t heads() const { return W.size(0); }
};

std::vector<Block> blocks_of(const Params& params);
Params params_of(const std::vector<at::Tensor>& blocks);

/// Float64 samples. R: the largest norm of a token, measured.
struct Data {
  at::Tensor X, y;      // [n, T, d], [n] of -1 and +1
  at::Tensor relevant;  // [n, T] bool, where the data model has it
  double R = 0;
};

/// @throws UserError if data are empty or not finite, or a label is not -1 or +1.
void check_data(const Data& data);

/// The objective of a descent on mhgd_loss_grad.
Objective objective(const Data& data);

// ---- data models

/// Tokenised mixture: k = round(zeta T) tokens are mu_y, the others one of nu_1 ... nu_M; all of
/// these orthogonal, of norm S.
struct MixtureOptions {
  int64_t T = 10, d = 22, M = 20;
  double zeta = 0.1, S = 1;
  bool random_location = true;  ///< of the relevant tokens, per sample; else the first ones
  bool canonical_basis = false;
  double noise_sigma = 0, flip_probability = 0;

  /// @throws UserError unless 1 <= round(zeta T) <= T - 1 and d >= M + 2.
  int64_t relevant_tokens() const;
};

/// Rows mu_+, mu_-, nu_1 ... nu_M.
at::Tensor mixture_basis(const MixtureOptions& options, uint64_t seed);
/// @param purpose  of the draw: samples of one seed share the basis.
Data mixture(int64_t n, const MixtureOptions& options, uint64_t seed, const char* purpose);

/// x_t ~ N(0, I), labels by the sign of one random head.
Data planted(int64_t n, int64_t T, int64_t d, uint64_t seed, const char* purpose,
             double margin_min = 0);

// ---- initialisations

Params zero_init(int64_t H, int64_t T, int64_t d);

enum class Signs { kRademacher, kBalanced };
/// One step of gradient descent from zero on other samples, of signed size: W = 0,
/// U_h = alpha_h / (2 n_1) sum_i y_i 1 xbar_i^T.
Params onestep_init(int64_t H, const Data& other, uint64_t seed, Signs signs, double alpha = 1);
/// The same for infinitely many samples of a noiseless mixture.
Params onestep_init(int64_t H, const MixtureOptions& options, uint64_t seed, Signs signs,
                    double alpha = 1);
/// Heads h < H/2 are normal, head h + H/2 has -U: Phi = 0.
Params symmetric_init(int64_t H, int64_t T, int64_t d, uint64_t seed, double s_u = 0.1,
                      double s_w = 0.1);

// ---- bounds (dimension-free, by proof)

struct Bounds {
  double theta_2inf;    ///< max_h ||U_h||
  double beta1, beta3;  ///< ||grad Phi|| <= beta1; Hessian of a head <= beta3
  double kappa;         ///< beta3 / sqrt H: lambda_min(Hess) >= -kappa L
  double lambda_max;    ///< bound on the largest eigenvalue of the Hessian of the loss
  double beta1_paper;   ///< reference only
};
Bounds bounds(const Params& params, double R);

/// What the head condition of the training bounds asks for, at D = ||theta~ - theta_0||.
struct HeadCondition {
  double needed;
  bool met;
};
HeadCondition head_condition(const Params& comparator, const Params& start, double R);

/// Extreme eigenvalues of the Hessian of the loss, by central differences of its gradient.
Curvature curvature(const Data& data, const Params& params, uint64_t seed, int64_t iterations = 40);
/// The Hessian of the loss times a direction.
std::vector<at::Tensor> hessian_product(const Data& data, const Params& params,
                                        const std::vector<at::Tensor>& direction);

// ---- linearised model, kernels, metrics

class Linearised {
 public:
  Linearised(const Data& data, Params theta0);
  at::Tensor operator()(const Params& theta) const;
  /// The logistic loss of the linearised model and its gradients.
  Evaluation evaluate(const Params& theta, const at::Tensor& y) const;

 private:
  at::Tensor X_, phi0_, Z_, G_;
  Params theta0_;
};

/// Blocks U and W of the tangent kernel, N <= 256 samples. @throws UserError
Kernels kernels(const at::Tensor& X, const Params& params);

/// y Phi < 0 counts 1, Phi = 0 counts 1/2.
double zero_one_error(const at::Tensor& phi, const at::Tensor& y);
double logistic_loss(const at::Tensor& phi, const at::Tensor& y);

struct AttentionFacts {
  double entropy;        ///< mean over samples, queries and heads
  double relevant_mass;  ///< mean mass on the relevant tokens, NaN where the data have none
  double largest_norm, largest_trace, smallest_trace;  ///< of I1
  double product_over_bound;  ///< I2: max of ||sum_t x_t g_t^T|| over sqrt(T) R^3 ||U_h||
};
AttentionFacts attention_facts(const Data& data, const Params& params);

/// Mean cosine of W_h - W_h(0) between heads; NaN where one is zero.
double head_similarity(const at::Tensor& W, const at::Tensor& start);

}  // namespace kktorch::dynamics::multihead
