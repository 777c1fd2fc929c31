#include "train/dynamics/shallow.h"

#include <algorithm>
#include <cmath>

#include "ops/project_ball.h"
#include "ops/shk.h"
#include "train/common/error.h"
#include "train/loop/seed_stream.h"

namespace kktorch::dynamics::shallow {
namespace {

using at::Tensor;

constexpr double kNormSlack = 1e-6;
constexpr int64_t kFeatureBytes = int64_t{64} << 20;

double root(int64_t m) { return std::sqrt(static_cast<double>(m)); }

Tensor per_head(const Tensor& values, const Tensor& like) {
  auto sizes = std::vector<int64_t>(like.dim(), 1);
  sizes[0] = like.size(0);
  return values.reshape(sizes);
}

Tensor head_norms(const Tensor& t) { return t.reshape({t.size(0), -1}).norm(2, 1); }

/// Every head scaled to norm `length`; where it is zero, `otherwise` is.
Tensor with_norm(const Tensor& direction, double length, const Tensor& otherwise) {
  const auto norms = head_norms(direction);
  const auto chosen = torch::where(per_head(norms > 0, direction), direction, otherwise);
  return chosen * per_head(length / head_norms(chosen), chosen);
}

void check_radii(const Radii& r, const char* name) {
  for (const double value : {r.c, r.u, r.w})
    if (!(value >= 0)) fail("shallow: expected {} >= 0, but got {}", name, value);
}

}  // namespace

void check_data(const Data& data) {
  if (data.X.numel() == 0 || data.q.numel() == 0) fail("shallow: expected samples, but got none");
  for (const auto& t : {data.X, data.q, data.y})
    if (t.defined() && !t.isfinite().all().item<bool>())
      fail("shallow: expected finite data, but got numbers that are not");
  if (!data.bounded) return;
  const double token = data.X.norm(2, -1).max().item<double>();
  const double query = data.q.norm(2, -1).max().item<double>();
  if (token > 1 + kNormSlack || query > 1 + kNormSlack)
    fail("shallow: expected tokens and queries of norm <= 1 in bounded data, but got {} and {}",
         token, query);
}

Data clipped_normal(int64_t n, int64_t T, int64_t d, at::Generator generator) {
  if (n < 1 || T < 1 || d < 1) fail("shallow: expected n, T, d >= 1, but got {}, {}, {}", n, T, d);
  const auto X = torch::randn({n, T, d}, generator, torch::kDouble);
  const auto clipped = X * (1 / X.norm(2, -1, true)).clamp_max(1);
  return {clipped, clipped.select(1, T - 1).contiguous(), {}, true};
}

Params symmetric_init(int64_t m, int64_t d, uint64_t seed) {
  if (m < 2 || m % 2 != 0) fail("shallow: expected an even number of heads, but got {}", m);
  auto generator = generator_of(seed, "init", static_cast<uint64_t>(m));
  const auto W = torch::randn({m / 2, d, d}, generator, torch::kDouble);
  const auto U = torch::randn({m / 2, d}, generator, torch::kDouble);
  const auto c = 2 * torch::randint(2, {m / 2}, generator, torch::kDouble) - 1;
  return {torch::cat({W, W}), torch::cat({U, U}), torch::cat({c, -c})};
}

std::vector<Block> blocks_of(const Params& params, const Radii& rho) {
  check_radii(rho, "rho");
  const double m = root(params.heads());
  return {{"W", params.W, rho.w / m}, {"U", params.U, rho.u / m}, {"c", params.c, rho.c / m}};
}

Params params_of(const std::vector<Tensor>& blocks) {
  return {blocks.at(0), blocks.at(1), blocks.at(2)};
}

Objective objective(const Data& data, const std::string& act) {
  return [data, act](const std::vector<Tensor>& blocks, const Tensor& batch) -> Evaluation {
    const auto chosen = [&](const Tensor& t) {
      return batch.defined() ? t.index_select(0, batch) : t;
    };
    auto [loss, f, gW, gU, gc] = shk_loss_grad(chosen(data.X), chosen(data.q), chosen(data.y),
                                               blocks[0], blocks[1], blocks[2], act);
    return {loss.item<double>(), f, {gW, gU, gc}};
  };
}

ActivationBounds activation_bounds(const std::string& act) {
  if (act == "tanh") return {1, 1, 4 / (3 * std::sqrt(3.0))};
  if (act == "sigmoid") return {1, 0.25, 1 / (6 * std::sqrt(3.0))};
  fail("shallow: expected activation tanh or sigmoid for bounds and teachers, but got {}", act);
}

Constants constants(const Params& phi0, const Radii& rho, const Radii& nu, int64_t n,
                    const std::string& act, double delta) {
  check_radii(rho, "rho");
  check_radii(nu, "nu");
  const auto [s0, s1, s2] = activation_bounds(act);
  const double m = root(phi0.heads());
  Constants k;
  k.B_U = phi0.U.norm(2, 1).max().item<double>() + rho.u / m;
  const double squared = 1 + k.B_U * k.B_U, ball = rho.w * rho.w + rho.u * rho.u;
  k.L1 = s1 * std::sqrt(squared);
  k.L2 = s2 * squared + 8 * s1 * std::sqrt(squared);
  k.B_lin = (k.L1 * rho.c * std::sqrt(ball) + k.L2 * ball) / m;
  k.B_app = 2 * (s0 * nu.c + s1 * nu.u + s1 * nu.w) *
            std::sqrt(2 * std::log(2 * static_cast<double>(n) / delta)) / m;
  k.f_bound = s0 * rho.c + k.L1 * std::sqrt(ball);
  k.gradient_c = s0;
  k.gradient_u = (1 + rho.c / m) * s1;
  k.gradient_w = k.gradient_u * k.B_U;
  return k;
}

Teacher::Teacher(const Data& anchors, const Radii& nu, int64_t pool, uint64_t pool_seed,
                 std::string act)
    : anchors_(anchors), nu_(nu), pool_(pool), pool_seed_(pool_seed), act_(std::move(act)) {
  check_data(anchors_);
  check_radii(nu_, "nu");
  activation_bounds(act_);
  if (pool_ < 1) fail("shallow: expected a pool of heads, but got {}", pool_);
}

Transport Teacher::transport(const Tensor& W, const Tensor& U) const {
  const auto [s0, s1, s2] = activation_bounds(act_);
  const auto [h, B, G] = shk_features(anchors_.X, anchors_.q, W, U, act_);  // [R, m], [R, m, d]
  const auto norms = G.norm(2, -1) * anchors_.q.norm(2, -1).unsqueeze(1);
  const auto clipped = G * (nu_.w / norms).clamp_max(1).unsqueeze(-1);
  const auto R = static_cast<double>(anchors_.X.size(0));
  const auto w = torch::einsum("rme,rd->med", {clipped, anchors_.q}) / R;
  Transport v{h.mean(0) * (nu_.c / s0), B.mean(0) * (nu_.u / s1), w};
  constexpr double kSlack = 1 + 1e-9;
  TORCH_CHECK(v.c.abs().max().item<double>() <= nu_.c * kSlack &&
                  head_norms(v.u).max().item<double>() <= nu_.u * kSlack &&
                  head_norms(v.w).max().item<double>() <= nu_.w * kSlack,
              "shallow: expected transportation maps within nu, but got longer ones");
  return v;
}

Tensor mean_features(const Data& data, const Tensor& W, const Tensor& U, const Transport& v,
                     const std::string& act) {
  const int64_t m = W.size(0), d = U.size(1), n = data.X.size(0);
  const int64_t step = std::clamp<int64_t>(kFeatureBytes / (n * (3 * d + 1) * 8), 8, m);
  auto sum = torch::zeros({n}, torch::kDouble);
  for (int64_t i = 0; i < m; i += step) {
    const int64_t count = std::min(step, m - i);
    const auto part = [&](const Tensor& t) { return t.narrow(0, i, count); };
    const auto [h, B, G] = shk_features(data.X, data.q, part(W), part(U), act);
    const auto vq = torch::matmul(data.q, part(v.w).reshape({count * d, d}).t());  // [n, count d]
    sum += torch::mv(h, part(v.c)) + torch::mv(B.flatten(1), part(v.u).flatten());
    sum += (G.flatten(1) * vq).sum(1);
  }
  return sum / static_cast<double>(m);
}

Tensor Teacher::labels(const Data& data) const {
  const int64_t d = data.X.size(2);
  auto generator = generator_of(pool_seed_, "teacher pool");
  const auto W = torch::randn({pool_, d, d}, generator, torch::kDouble);
  const auto U = torch::randn({pool_, d}, generator, torch::kDouble);
  return mean_features(data, W, U, transport(W, U), act_);
}

Params Teacher::transported(const Params& phi0) const {
  const auto v = transport(phi0.W, phi0.U);
  const double m = root(phi0.heads());
  return {phi0.W + per_head(phi0.c, v.w) * v.w / m, phi0.U + per_head(phi0.c, v.u) * v.u / m,
          phi0.c + v.c / m};
}

Linearised::Linearised(const Data& data, Params phi0, std::string act)
    : q_(data.q), phi0_(std::move(phi0)) {
  f0_ = shk_output(data.X, data.q, phi0_.W, phi0_.U, phi0_.c, act);
  std::tie(h_, B_, G_) = shk_features(data.X, data.q, phi0_.W, phi0_.U, act);
}

Tensor Linearised::operator()(const Params& phi) const {
  const int64_t m = phi0_.heads(), d = phi0_.width();
  const auto dU = per_head(phi0_.c, phi.U) * (phi.U - phi0_.U);
  const auto dW = per_head(phi0_.c, phi.W) * (phi.W - phi0_.W);
  const auto dWq = torch::matmul(q_, dW.reshape({m * d, d}).t());
  return f0_ + (torch::mv(h_, phi.c - phi0_.c) + torch::mv(B_.flatten(1), dU.flatten()) +
                (G_.flatten(1) * dWq).sum(1)) /
                   root(m);
}

Evaluation Linearised::evaluate(const Params& phi, const Tensor& y) const {
  const int64_t m = phi0_.heads(), d = phi0_.width(), n = y.size(0);
  const auto f = (*this)(phi), residual = f - y;
  const auto r = residual * (2 / (static_cast<double>(n) * root(m)));
  const auto gU = torch::mv(B_.flatten(1).t(), r).view({m, d});
  const auto gW = torch::matmul((r.view({n, 1, 1}) * G_).flatten(1).t(), q_).view({m, d, d});
  return {residual.to(torch::kDouble).square().mean().item<double>(),
          f,
          {per_head(phi0_.c, gW) * gW, per_head(phi0_.c, gU) * gU, torch::mv(h_.t(), r)}};
}

Params random_boundary(const Params& phi0, const Radii& rho, uint64_t seed) {
  check_radii(rho, "rho");
  const double m = root(phi0.heads());
  auto generator = generator_of(seed, "boundary", static_cast<uint64_t>(phi0.heads()));
  const auto normal = [&](const Tensor& t) {
    return torch::randn(t.sizes(), generator, torch::kDouble);
  };
  const auto c = normal(phi0.c), U = normal(phi0.U), W = normal(phi0.W);
  return {phi0.W + with_norm(W, rho.w / m, W), phi0.U + with_norm(U, rho.u / m, U),
          phi0.c + with_norm(c, rho.c / m, c)};
}

Params aligned_boundary(const Params& phi0, const Radii& rho, const Data& data, int64_t sample,
                        uint64_t seed, const std::string& act) {
  const double m = root(phi0.heads());
  const auto q = data.q.narrow(0, sample, 1);
  const auto [h, B, G] = shk_features(data.X.narrow(0, sample, 1), q, phi0.W, phi0.U, act);
  const auto other = random_boundary(phi0, rho, seed);
  return {phi0.W + with_norm(G[0].unsqueeze(2) * q[0], rho.w / m, other.W - phi0.W),
          phi0.U + with_norm(B[0], rho.u / m, other.U - phi0.U), phi0.c + rho.c / m};
}

Params ascent_boundary(const Params& phi0, const Radii& rho, const Data& data, int64_t sample,
                       uint64_t seed, int64_t steps, const std::string& act) {
  const Data one{data.X.narrow(0, sample, 1), data.q.narrow(0, sample, 1), {}, data.bounded};
  const Linearised linear(one, phi0, act);
  auto phi = aligned_boundary(phi0, rho, data, sample, seed, act);
  const auto blocks = blocks_of(phi0, rho);
  // The gradient of f_lin is that of f at phi0.
  const auto weight = torch::ones({1}, phi0.c.options());
  const auto [W0, U0, c0] =
      detail::shk_output_backward(weight, one.X, one.q, phi0.W, phi0.U, phi0.c, act);
  auto best = phi;
  double largest = -1;
  for (int64_t step = 0;; ++step) {
    const auto gap = shk_output(one.X, one.q, phi.W, phi.U, phi.c, act) - linear(phi);
    if (gap.abs().item<double>() > largest) {
      largest = gap.abs().item<double>();
      best = phi;
    }
    if (step == steps) return best;
    const auto [gW, gU, gc] =
        detail::shk_output_backward(gap.sign(), one.X, one.q, phi.W, phi.U, phi.c, act);
    const auto ascend = [&](const Tensor& value, const Tensor& gradient, const Tensor& linear_part,
                            const Block& block) {
      const auto direction = gradient - gap.sign() * linear_part;
      const auto length = with_norm(direction, 0.2 * block.radius, torch::ones_like(direction));
      return std::get<0>(project_ball(value + length, block.value, block.radius));
    };
    phi = {ascend(phi.W, gW, W0, blocks[0]), ascend(phi.U, gU, U0, blocks[1]),
           ascend(phi.c, gc, c0, blocks[2])};
  }
}

Deviation deviation(const Tensor& difference) {
  const auto d = difference.to(torch::kDouble);
  return {d.abs().max().item<double>(), d.square().mean().sqrt().item<double>()};
}

AttentionFacts attention_facts(const Data& data, const Params& phi) {
  const int64_t m = phi.heads(), d = phi.width(), n = data.X.size(0);
  const auto V = torch::matmul(data.q, phi.W.reshape({m * d, d}).t()).view({n, m, d});
  const auto P = torch::softmax(torch::bmm(V, data.X.transpose(1, 2)), -1);
  const auto mean = torch::bmm(P, data.X);
  const auto trace =
      torch::matmul(P, data.X.square().sum(-1, true)).squeeze(-1) - mean.square().sum(-1);
  const auto entropy = -(P * P.clamp_min(1e-300).log()).sum(-1).mean();
  return {mean.norm(2, -1).max().item<double>(), trace.max().item<double>(),
          trace.min().item<double>(), entropy.item<double>()};
}

}  // namespace kktorch::dynamics::shallow
