#pragma once
// Shallow transformers in the kernel regime (arXiv 2601.16514): parameters, balls, data, teacher,
// linearised model and the constants of its bounds. Model and gradients: ops/shk.h.
#include <torch/torch.h>

#include <cstdint>
#include <string>

#include "train/dynamics/descent.h"

namespace kktorch::dynamics::shallow {

struct Params {
  at::Tensor W, U, c;  // [m, d, d], [m, d], [m]

  int64_t heads() const { return c.size(0); }
  int64_t width() const { return U.size(1); }
  Params to(at::ScalarType dtype) const { return {W.to(dtype), U.to(dtype), c.to(dtype)}; }
};

/// Samples of one dtype. `bounded`: all tokens and queries have norm <= 1.
struct Data {
  at::Tensor X, q, y;  // [n, T, d], [n, d], [n]
  bool bounded = true;
};

/// @throws UserError if a tensor is empty or not finite, or a bounded one has a longer token.
void check_data(const Data& data);

/// Normal tokens, each shortened to norm 1 where it is longer; the last one is the query. Float64,
/// without labels.
Data clipped_normal(int64_t n, int64_t T, int64_t d, at::Generator generator);

/// Heads i < m/2 are drawn (W, U ~ N(0, 1), c = +-1), head i + m/2 is head i with c -> -c: f = 0.
/// @throws UserError if m is odd.
Params symmetric_init(int64_t m, int64_t d, uint64_t seed);

/// Radii of the balls, before the division by sqrt m.
struct Radii {
  double c, u, w;
};

/// The parameters as blocks W, U, c of a descent within the balls.
std::vector<Block> blocks_of(const Params& params, const Radii& rho);
Params params_of(const std::vector<at::Tensor>& blocks);

/// The objective of a descent on shk_loss_grad.
Objective objective(const Data& data, const std::string& act = "tanh");

/// Largest absolute values of sigma, sigma' and sigma''.
struct ActivationBounds {
  double s0, s1, s2;
};
/// @throws UserError for "identity", which has none.
ActivationBounds activation_bounds(const std::string& act);

/// Constants of section 5, of the balls about phi0.
struct Constants {
  double B_U, L1, L2;
  double B_lin;    ///< |f - f_lin| within the balls
  double B_app;    ///< a reference line only: its part of W needs ||phi_w|| <= s1
  double f_bound;  ///< |f| within the balls
  double gradient_c, gradient_u, gradient_w;  ///< norms of the gradients of f within the balls
};
Constants constants(const Params& phi0, const Radii& rho, const Radii& nu, int64_t n,
                    const std::string& act = "tanh", double delta = 0.05);

/// Transportation maps v of heads (U, W): [m], [m, d], [m, d, d].
struct Transport {
  at::Tensor c, u, w;
};

/// A function of the class F_nu, by transportation maps from R anchors (section 7).
class Teacher {
 public:
  /// @param pool_seed  of the heads that labels are means over.
  Teacher(const Data& anchors, const Radii& nu, int64_t pool, uint64_t pool_seed,
          std::string act = "tanh");

  /// The maps at heads (U, W); their sup-bounds nu are asserted.
  Transport transport(const at::Tensor& W, const at::Tensor& U) const;

  /// Labels of data, float64.
  at::Tensor labels(const Data& data) const;

  /// phi0 moved by the maps at its heads: the comparator, on which f_lin approximates the labels.
  Params transported(const Params& phi0) const;

  const Radii& nu() const { return nu_; }

 private:
  Data anchors_;
  Radii nu_;
  int64_t pool_;
  uint64_t pool_seed_;
  std::string act_;
};

/// (1/m) sum_i phi_i . v_i over heads (U, W), float64: what labels are for the pool.
at::Tensor mean_features(const Data& data, const at::Tensor& W, const at::Tensor& U,
                         const Transport& v, const std::string& act);

/// f_lin(X; phi) = f(X; phi0) + <grad f(X; phi0), phi - phi0> on fixed data.
class Linearised {
 public:
  Linearised(const Data& data, Params phi0, std::string act = "tanh");
  at::Tensor operator()(const Params& phi) const;

  /// Squared loss and its gradients: the linear twin of objective().
  Evaluation evaluate(const Params& phi, const at::Tensor& y) const;

  const at::Tensor& h() const { return h_; }
  const at::Tensor& B() const { return B_; }
  const at::Tensor& G() const { return G_; }

 private:
  at::Tensor q_, f0_, h_, B_, G_;
  Params phi0_;
};

/// Points on the boundary of the balls (section 8), each head at the full radii.
Params random_boundary(const Params& phi0, const Radii& rho, uint64_t seed);
/// The gradients of one sample in every head, same sign: the worst case.
Params aligned_boundary(const Params& phi0, const Radii& rho, const Data& data, int64_t sample,
                        uint64_t seed, const std::string& act = "tanh");
/// Projected gradient ascent of |f - f_lin| at one sample from the aligned point; the best of it.
Params ascent_boundary(const Params& phi0, const Radii& rho, const Data& data, int64_t sample,
                       uint64_t seed, int64_t steps = 50, const std::string& act = "tanh");

/// sup and root mean square.
struct Deviation {
  double sup, rms;
};
Deviation deviation(const at::Tensor& difference);

/// Checks J1 of the attention itself on data, and returns what is reported of it.
struct AttentionFacts {
  double largest_mean, largest_trace, smallest_trace, entropy;
};
AttentionFacts attention_facts(const Data& data, const Params& phi);

}  // namespace kktorch::dynamics::shallow
