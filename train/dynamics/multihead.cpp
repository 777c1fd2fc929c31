#include "train/dynamics/multihead.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "ops/mhgd.h"
#include "train/common/error.h"
#include "train/loop/seed_stream.h"

namespace kktorch::dynamics::multihead {
namespace {

using at::Tensor;

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

double root(int64_t H) { return std::sqrt(static_cast<double>(H)); }
double number(const Tensor& t) { return t.item<double>(); }
Tensor head_norms(const Tensor& t) { return t.flatten(1).norm(2, 1); }

double measured_radius(const Tensor& X) { return number(X.norm(2, -1).max()); }

/// U_h = alpha_h * direction for random signs alpha_h.
Params signed_heads(int64_t H, const Tensor& direction, uint64_t seed, Signs signs, double alpha) {
  if (H < 1) fail("multihead: expected H >= 1, but got {}", H);
  if (signs == Signs::kBalanced && H % 2 != 0)
    fail("multihead: expected an even H for balanced signs, but got {}", H);
  const int64_t d = direction.size(1);
  Tensor sign;
  if (signs == Signs::kBalanced) {
    sign = torch::ones({H}, torch::kDouble);
    sign.narrow(0, H / 2, H / 2).fill_(-1);
  } else {
    auto generator = generator_of(seed, "init", static_cast<uint64_t>(H));
    sign = 2 * torch::randint(2, {H}, generator, torch::kDouble) - 1;
  }
  return {torch::zeros({H, d, d}, torch::kDouble), alpha * sign.view({H, 1, 1}) * direction};
}

}  // namespace

std::vector<Block> blocks_of(const Params& params) { return {{"W", params.W}, {"U", params.U}}; }

Params params_of(const std::vector<Tensor>& blocks) { return {blocks.at(0), blocks.at(1)}; }

void check_data(const Data& data) {
  if (data.X.numel() == 0) fail("multihead: expected samples, but got none");
  if (!data.X.isfinite().all().item<bool>())
    fail("multihead: expected finite data, but got numbers that are not");
  if (!(data.y.abs() == 1).all().item<bool>())
    fail("multihead: expected labels -1 and +1, but got others");
}

Objective objective(const Data& data) {
  check_data(data);
  return [data](const std::vector<Tensor>& blocks, const Tensor& batch) -> Evaluation {
    const auto chosen = [&](const Tensor& t) {
      return batch.defined() ? t.index_select(0, batch) : t;
    };
    auto [loss, phi, gW, gU] = mhgd_loss_grad(chosen(data.X), chosen(data.y), blocks[0], blocks[1]);
    return {number(loss), phi, {gW, gU}};
  };
}

// ---- data models

int64_t MixtureOptions::relevant_tokens() const {
  const auto k = std::llround(zeta * static_cast<double>(T));
  if (k < 1 || k > T - 1)
    fail("multihead: expected 1 <= zeta T <= T - 1, but got zeta {} and T {}", zeta, T);
  if (d < M + 2) fail("multihead: expected d >= M + 2, but got {} and {}", d, M);
  return k;
}

Tensor mixture_basis(const MixtureOptions& o, uint64_t seed) {
  o.relevant_tokens();
  if (o.canonical_basis) return o.S * torch::eye(o.d, torch::kDouble).narrow(0, 0, o.M + 2);
  const auto normal = torch::randn({o.d, o.d}, generator_of(seed, "basis"), torch::kDouble);
  const auto [Q, R] = torch::linalg_qr(normal);
  const auto rotation = Q * R.diagonal().sign();  // uniform over rotations and reflections
  return o.S * rotation.t().narrow(0, 0, o.M + 2).contiguous();
}

Data mixture(int64_t n, const MixtureOptions& o, uint64_t seed, const char* purpose) {
  if (n < 1) fail("multihead: expected n >= 1, but got {}", n);
  const int64_t k = o.relevant_tokens();
  const auto basis = mixture_basis(o, seed);
  auto generator = generator_of(seed, purpose);
  auto y = 2 * torch::randint(2, {n}, generator, torch::kDouble) - 1;
  const auto noise = torch::randint(o.M, {n, o.T}, generator, torch::kLong) + 2;
  Tensor relevant = torch::arange(o.T).expand({n, o.T}) < k;
  if (o.random_location)
    relevant = torch::rand({n, o.T}, generator, torch::kDouble).argsort(int64_t{1}) < k;
  const auto class_row = (y < 0).to(torch::kLong).unsqueeze(1).expand({n, o.T});
  Data data;
  data.X =
      basis.index_select(0, torch::where(relevant, class_row, noise).flatten()).view({n, o.T, o.d});
  if (o.noise_sigma > 0)
    data.X += o.noise_sigma * torch::randn(data.X.sizes(), generator, torch::kDouble);
  if (o.flip_probability > 0)
    y = torch::where(torch::rand({n}, generator, torch::kDouble) < o.flip_probability, -y, y);
  data.y = y;
  data.relevant = relevant;
  data.R = measured_radius(data.X);
  return data;
}

Data planted(int64_t n, int64_t T, int64_t d, uint64_t seed, const char* purpose,
             double margin_min) {
  if (n < 1 || T < 1 || d < 1)
    fail("multihead: expected n, T, d >= 1, but got {}, {}, {}", n, T, d);
  auto teacher = generator_of(seed, "teacher");
  const auto U = torch::randn({1, T, d}, teacher, torch::kDouble);
  const auto W = torch::randn({1, d, d}, teacher, torch::kDouble) / root(d);
  auto generator = generator_of(seed, purpose);
  std::vector<Tensor> kept, labels;
  for (int64_t count = 0; count < n;) {
    const auto X = torch::randn({n, T, d}, generator, torch::kDouble);
    const auto phi = mhgd_logits(X, W, U);
    const auto good = ((phi.abs() >= margin_min) & (phi != 0)).nonzero().squeeze(1);
    kept.push_back(X.index_select(0, good));
    labels.push_back(phi.index_select(0, good).sign());
    if (good.size(0) == 0) fail("multihead: expected margins of {}, but got none", margin_min);
    count += good.size(0);
  }
  Data data{torch::cat(kept).narrow(0, 0, n).contiguous(),
            torch::cat(labels).narrow(0, 0, n).contiguous(),
            {},
            0};
  data.R = measured_radius(data.X);
  return data;
}

// ---- initialisations

Params zero_init(int64_t H, int64_t T, int64_t d) {
  if (H < 1) fail("multihead: expected H >= 1, but got {}", H);
  return {torch::zeros({H, d, d}, torch::kDouble), torch::zeros({H, T, d}, torch::kDouble)};
}

Params onestep_init(int64_t H, const Data& other, uint64_t seed, Signs signs, double alpha) {
  check_data(other);
  const auto mean = (other.y.view({-1, 1}) * other.X.mean(1)).mean(0) / 2;  // [d]
  return signed_heads(H, mean.expand({other.X.size(1), mean.size(0)}), seed, signs, alpha);
}

Params onestep_init(int64_t H, const MixtureOptions& o, uint64_t seed, Signs signs, double alpha) {
  if (o.noise_sigma > 0 || o.flip_probability > 0)
    fail("multihead: expected noiseless data for n1 = inf, but got noise {} and flips {}",
         o.noise_sigma, o.flip_probability);
  const auto basis = mixture_basis(o, seed);
  const double share = static_cast<double>(o.relevant_tokens()) / static_cast<double>(o.T);
  const auto mean = share / 4 * (basis[0] - basis[1]);
  return signed_heads(H, mean.expand({o.T, o.d}), seed, signs, alpha);
}

Params symmetric_init(int64_t H, int64_t T, int64_t d, uint64_t seed, double s_u, double s_w) {
  if (H < 2 || H % 2 != 0) fail("multihead: expected an even H for symmetric heads, but got {}", H);
  auto generator = generator_of(seed, "init", static_cast<uint64_t>(H));
  const auto U = s_u * torch::randn({H / 2, T, d}, generator, torch::kDouble);
  const auto W = s_w * torch::randn({H / 2, d, d}, generator, torch::kDouble);
  return {torch::cat({W, W}), torch::cat({U, -U})};
}

// ---- bounds

Bounds bounds(const Params& p, double R) {
  const auto T = static_cast<double>(p.U.size(1)), R2 = R * R, R3 = R2 * R;
  Bounds b;
  b.theta_2inf = number(head_norms(p.U).max());
  const double u2 = b.theta_2inf * b.theta_2inf;
  b.beta1 = std::sqrt(T) * R * std::sqrt(1 + R2 * R2 * u2);
  b.beta3 = std::sqrt(T) * R3 * (1 + 2 * R2 * b.theta_2inf);
  b.kappa = b.beta3 / root(p.heads());
  b.lambda_max = b.beta1 * b.beta1 / 4 + b.kappa;
  b.beta1_paper = std::sqrt(T) * R * (2 * R2 * number(p.U.norm()) + 1);
  return b;
}

HeadCondition head_condition(const Params& comparator, const Params& start, double R) {
  const double squares = number((comparator.W - start.W).square().sum()) +
                         number((comparator.U - start.U).square().sum());
  const double D = std::sqrt(squares), u = number(head_norms(comparator.U).max());
  const auto T = static_cast<double>(start.U.size(1));
  const double side = 18 * std::sqrt(T) * R * R * R * (1 + 2 * R * R * (u + 3 * D)) * squares;
  return {side * side, root(start.heads()) >= side};
}

std::vector<Tensor> hessian_product(const Data& data, const Params& params,
                                    const std::vector<Tensor>& v) {
  const auto norm_of = [](const Tensor& a, const Tensor& b) {
    return std::sqrt(number(a.square().sum()) + number(b.square().sum()));
  };
  const double length = norm_of(v.at(0), v.at(1));
  const double e = 1e-4 * (1 + norm_of(params.W, params.U)) / length;
  const auto gradient = [&](double step) {
    auto [loss, phi, gW, gU] =
        mhgd_loss_grad(data.X, data.y, params.W + step * v[0], params.U + step * v[1]);
    return std::pair(gW, gU);
  };
  const auto [aheadW, aheadU] = gradient(e);
  const auto [behindW, behindU] = gradient(-e);
  return {(aheadW - behindW) / (2 * e), (aheadU - behindU) / (2 * e)};
}

Curvature curvature(const Data& data, const Params& params, uint64_t seed, int64_t iterations) {
  const int64_t split = params.W.numel();
  const auto apply = [&](const Tensor& v) {
    const auto Hv = hessian_product(data, params,
                                    {v.narrow(0, 0, split).view(params.W.sizes()),
                                     v.narrow(0, split, params.U.numel()).view(params.U.sizes())});
    return torch::cat({Hv[0].flatten(), Hv[1].flatten()});
  };
  return lanczos(apply, split + params.U.numel(), seed, iterations);
}

// ---- linearised model, kernels, metrics

Linearised::Linearised(const Data& data, Params theta0) : X_(data.X), theta0_(std::move(theta0)) {
  phi0_ = mhgd_logits(X_, theta0_.W, theta0_.U);
  std::tie(Z_, G_) = mhgd_features(X_, theta0_.W, theta0_.U);
}

Tensor Linearised::operator()(const Params& theta) const {
  return phi0_ + mhgd_jvp(X_, Z_, G_, theta.W - theta0_.W, theta.U - theta0_.U);
}

Evaluation Linearised::evaluate(const Params& theta, const Tensor& y) const {
  const auto phi = (*this)(theta);
  const int64_t n = X_.size(0), d = X_.size(2), H = theta.heads();
  const auto r = -y * (-y * phi).sigmoid() / static_cast<double>(n) / root(H);
  const auto gU = (r.view({n, 1, 1, 1}) * Z_).sum(0).permute({1, 0, 2}).contiguous();
  const auto rows = (r.view({n, 1, 1}) * X_).reshape({-1, d});
  const auto gW = torch::matmul(rows.t(), G_.reshape({-1, H * d})).view({d, H, d});
  return {logistic_loss(phi, y), phi, {gW.permute({1, 0, 2}).contiguous(), gU}};
}

Kernels kernels(const Tensor& X, const Params& params) {
  constexpr int64_t kMost = 256, kBytes = int64_t{64} << 20;
  const int64_t N = X.size(0), d = X.size(2), H = params.heads();
  if (N > kMost) fail("multihead: expected at most {} samples of a kernel, but got {}", kMost, N);
  const auto [Z, G] = mhgd_features(X, params.W, params.U);
  const auto flat = Z.flatten(1);
  const auto K_U = torch::matmul(flat, flat.t()) / static_cast<double>(H);
  auto K_W = torch::zeros({N, N}, torch::kDouble);
  const int64_t step = std::clamp<int64_t>(kBytes / (N * d * d * 8), 1, H);
  for (int64_t h = 0; h < H; h += step) {
    const auto J =
        torch::einsum("nte,nthd->nhed", {X, G.narrow(2, h, std::min(step, H - h))}).flatten(1);
    K_W += torch::matmul(J, J.t()) / static_cast<double>(H);
  }
  return {{K_U, K_W}};
}

double zero_one_error(const Tensor& phi, const Tensor& y) {
  const auto margin = y * phi;
  return number(((margin < 0).to(torch::kDouble) + 0.5 * (margin == 0).to(torch::kDouble)).mean());
}

double logistic_loss(const Tensor& phi, const Tensor& y) {
  const auto z = y * phi;
  return number(((-z).clamp_min(0) + (-z.abs()).exp().log1p()).mean());
}

AttentionFacts attention_facts(const Data& data, const Params& params) {
  const int64_t n = data.X.size(0), T = data.X.size(1), d = data.X.size(2), H = params.heads();
  const auto columns = params.W.permute({1, 0, 2}).reshape({d, H * d});
  const auto XW = torch::matmul(data.X, columns).view({n, T * H, d});
  const auto P = torch::softmax(torch::bmm(XW, data.X.transpose(1, 2)), -1);  // [n, T H, T]
  const auto Z = torch::bmm(P, data.X);
  const auto trace =
      torch::matmul(P, data.X.square().sum(-1, true)).squeeze(-1) - Z.square().sum(-1);
  AttentionFacts facts{};
  facts.entropy = number(-(P * P.clamp_min(1e-300).log()).sum(-1).mean());
  facts.relevant_mass =
      data.relevant.defined()
          ? number(torch::bmm(P, data.relevant.to(torch::kDouble).unsqueeze(2)).mean())
          : kNone;
  facts.largest_norm = number(Z.norm(2, -1).max());
  facts.largest_trace = number(trace.max());
  facts.smallest_trace = number(trace.min());
  const auto [features, G] = mhgd_features(data.X, params.W, params.U);
  const auto product = torch::einsum("nte,nthd->nhed", {data.X, G}).flatten(2).norm(2, -1);
  const auto bound = std::sqrt(static_cast<double>(T)) * std::pow(data.R, 3) *
                     head_norms(params.U).clamp_min(1e-300);
  facts.product_over_bound = number((product / bound).max());
  return facts;
}

double head_similarity(const Tensor& W, const Tensor& start) {
  const int64_t H = W.size(0);
  const auto moved = (W - start).flatten(1), norms = moved.norm(2, 1, true);
  if (H < 2 || number(norms.min()) == 0) return kNone;
  const auto unit = moved / norms, gram = torch::matmul(unit, unit.t());
  const double pairs = static_cast<double>(H) * static_cast<double>(H - 1);
  return (number(gram.sum()) - static_cast<double>(H)) / pairs;
}

}  // namespace kktorch::dynamics::multihead
