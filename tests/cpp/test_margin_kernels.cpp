// The kernels of the margin tracker against the composition of ATen ops, and the closed-form
// gradient of the attention model against autograd. CTest runs the suite MarginKernels once per
// instruction-set tier.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "csrc/svm/attention_model.h"
#include "ops/attn_dual.h"
#include "ops/attn_margin.h"
#include "tests/cpp/tier_testing.h"

namespace kktorch {
namespace {

using torch::Tensor;

Tensor row_pointers(const std::vector<int64_t>& sizes) {
  return torch::cat({torch::zeros({1}, torch::kLong), torch::tensor(sizes).cumsum(0)});
}

// ---- kernels

class MarginKernels : public TierTest {};

struct Sets {
  Tensor x, y, z, row_ptr, tok, g;
};

/// Sets of one token to 200, in which tokens of a pool repeat.
Sets draw_sets(int64_t dx, at::ScalarType dtype) {
  const auto row_ptr = row_pointers({1, 5, 200, 2, 1, 64, 65, 31});
  const int64_t entries = row_ptr[-1].item<int64_t>(), queries = row_ptr.size(0) - 1;
  return {.x = torch::randn({300, dx}).to(dtype),
          .y = torch::randn({queries, dx}, torch::kDouble),
          .z = torch::randn({queries, 7}, torch::kDouble),
          .row_ptr = row_ptr,
          .tok = torch::randint(300, {entries}, torch::kLong),
          .g = torch::randn({entries}, torch::kDouble)};
}

double distance(const Tensor& a, const Tensor& b) {
  const auto both_infinite = a.isinf().logical_and(a == b);
  return (a - b).masked_fill(both_infinite, 0).abs().max().item<double>();
}

void expect_equal_margins(const MarginTensors& actual, const MarginTensors& expected, double size) {
  EXPECT_LT(distance(std::get<0>(actual), std::get<0>(expected)), 1e-14 * size);
  EXPECT_TRUE(torch::equal(std::get<1>(actual), std::get<1>(expected)));
  EXPECT_LT(distance(std::get<2>(actual), std::get<2>(expected)), 1e-14 * size);
  EXPECT_TRUE(torch::equal(std::get<3>(actual), std::get<3>(expected)));
  EXPECT_LT(distance(std::get<4>(actual), std::get<4>(expected)), 1e-14 * size);
  EXPECT_LT(distance(std::get<5>(actual), std::get<5>(expected)), 1e-13 * size);
  EXPECT_LT(distance(std::get<6>(actual), std::get<6>(expected)), 1e-14 * size);
}

TEST_F(MarginKernels, EqualTheComposition) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf})
    for (const int64_t dx : {1, 3, 16, 33, 70}) {
      SCOPED_TRACE(testing::Message() << at::toString(dtype) << " dx=" << dx);
      const auto s = draw_sets(dx, dtype);
      const double size = 10 * std::sqrt(dx);  // of the logits
      for (const double scale : {1.0, 0.3, 50.0}) {
        const auto found = attn_margin(s.x, s.y, s.row_ptr, s.tok, {}, scale);
        expect_equal_margins(found, detail::attn_margin_aten(s.x, s.y, s.row_ptr, s.tok, {}, scale),
                             size * scale);
        const auto alpha = torch::remainder(std::get<1>(found) + 1, s.row_ptr.diff());
        expect_equal_margins(attn_margin(s.x, s.y, s.row_ptr, s.tok, alpha, scale),
                             detail::attn_margin_aten(s.x, s.y, s.row_ptr, s.tok, alpha, scale),
                             size * scale);
      }
      const auto alpha = std::get<1>(attn_margin(s.x, s.y, s.row_ptr, s.tok));
      const auto [M, mass] = attn_dual(s.x, s.z, s.row_ptr, alpha, s.g, s.tok);
      const auto [M2, mass2] = detail::attn_dual_aten(s.x, s.z, s.row_ptr, alpha, s.g, s.tok);
      EXPECT_LT(distance(M, M2), 1e-11);
      EXPECT_LT(distance(mass, mass2), 1e-12);
    }
}

TEST_F(MarginKernels, EqualTokensHaveEqualLogitsWhereverTheyStand) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf})
    for (const int64_t dx : {2, 16, 37})
      for (const int64_t size : {2, 3, 5, 9}) {
        const auto x = torch::randn({1, dx}).to(dtype).repeat({size, 1});
        const auto y = torch::randn({1, dx}, torch::kDouble);
        const auto [margin, alpha, qmin, qarg, smax, entropy, xmax] =
            attn_margin(x, y, torch::tensor({int64_t{0}, size}));
        EXPECT_EQ(margin.count_nonzero().item<int64_t>(), 0) << at::toString(dtype) << " " << dx;
        EXPECT_EQ(alpha.item<int64_t>(), 0);
        EXPECT_EQ(qarg.item<int64_t>(), 1);
      }
}

TEST_F(MarginKernels, ProbabilitiesFarFromTheLargestVanishWithoutHarm) {
  const auto x = torch::tensor({0.0, -1.0, -700.0, -800.0, -1e300}, torch::kDouble).view({5, 1});
  const auto [margin, alpha, qmin, qarg, smax, entropy, xmax] =
      attn_margin(x, torch::ones({1, 1}, torch::kDouble), torch::tensor({0, 5}));
  const double e = std::exp(-1.0), total = 1 + e;
  EXPECT_EQ(alpha.item<int64_t>(), 0);
  EXPECT_EQ(qarg.item<int64_t>(), 1);
  EXPECT_DOUBLE_EQ(smax.item<double>(), 1 / total);
  EXPECT_NEAR(entropy.item<double>(), std::log(total) + e / total, 1e-15);
  EXPECT_EQ(xmax.item<double>(), INFINITY);  // the square overflows: no bound is claimed
  EXPECT_EQ(margin[4].item<double>(), 1e300);
}

TEST_F(MarginKernels, ALogitThatIsNotFiniteGivesNaNInItsQueryOnly) {
  auto s = draw_sets(5, at::kFloat);
  for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    auto y = s.y.clone();
    y[2][1] = bad;
    for (const auto& found : {attn_margin(s.x, y, s.row_ptr, s.tok),
                              detail::attn_margin_aten(s.x, y, s.row_ptr, s.tok, {}, 1)}) {
      const auto& [margin, alpha, qmin, qarg, smax, entropy, xmax] = found;
      for (const auto& number : {qmin, smax, entropy, xmax})
        EXPECT_EQ(number.isnan().sum().item<int64_t>(), 1);
      EXPECT_EQ(margin.isnan().sum().item<int64_t>(), 200);
      EXPECT_TRUE(std::isnan(qmin[2].item<double>()));
      EXPECT_EQ(qarg[2].item<int64_t>(), -1);
      EXPECT_EQ(alpha[2].item<int64_t>(), 0);
    }
  }
}

// ---- the gradient

struct Theory {
  Tensor x = {}, z = {}, row_ptr = {}, tok = {}, labels = {}, v = {};
  csrc::AttentionHead head;
  csrc::MarginLoss loss;
  double lbd = 0.3, inputs;

  csrc::AttentionModel model() const {
    return {.sets = {.x = x.const_data_ptr<double>(),
                     .z = z.const_data_ptr<double>(),
                     .row_ptr = row_ptr.const_data_ptr<int64_t>(),
                     .tok = tok.defined() ? tok.const_data_ptr<int64_t>() : nullptr,
                     .N = x.size(0),
                     .dx = x.size(1),
                     .Q = z.size(0),
                     .dz = z.size(1)},
            .labels = labels.const_data_ptr<double>(),
            .head = head,
            .v = v.const_data_ptr<double>(),
            .units = v.dim() == 2 ? v.size(0) : 1,
            .lbd = lbd,
            .loss = loss,
            .inputs = inputs};
  }

  /// By the definition, for autograd.
  Tensor risk(const Tensor& W) const {
    Tensor sum = torch::zeros({}, torch::kDouble);
    for (int64_t q = 0; q < z.size(0); ++q) {
      const auto entries =
          torch::arange(row_ptr[q].item<int64_t>(), row_ptr[q + 1].item<int64_t>());
      const auto X = x.index_select(0, tok.defined() ? tok.index_select(0, entries) : entries);
      const auto o = torch::matmul(torch::softmax(torch::matmul(X, torch::matmul(W, z[q])), 0), X);
      const auto f = head == csrc::AttentionHead::kRelu   ? torch::relu(torch::matmul(v, o)).sum()
                     : head == csrc::AttentionHead::kQuad ? v.dot(o) - lbd * o.square().sum()
                                                          : v.dot(o);
      const auto u = labels[q] * f;
      sum = sum + (loss == csrc::MarginLoss::kLinear        ? -u
                   : loss == csrc::MarginLoss::kExponential ? (-u).exp()
                                                            : torch::softplus(-u));
    }
    return sum / inputs;
  }
};

/// Ragged sets, and the causal sequence of one input (token k sees tokens 0 ... k).
Theory theory(bool causal, csrc::AttentionHead head, csrc::MarginLoss loss) {
  const auto options = torch::dtype(torch::kDouble);
  const std::vector<int64_t> sizes =
      causal ? std::vector<int64_t>{1, 2, 3, 4, 5} : std::vector<int64_t>{4, 1, 6, 3};
  Theory t{.head = head, .loss = loss, .inputs = causal ? 1.0 : 4.0};
  t.row_ptr = row_pointers(sizes);
  t.x = torch::randn({causal ? 5 : 14, 3}, options);
  t.z = causal ? t.x.clone() : torch::randn({4, 2}, options);
  if (causal) {
    std::vector<Tensor> prefixes;
    for (const auto size : sizes) prefixes.push_back(torch::arange(size));
    t.tok = torch::cat(prefixes);
  }
  t.labels = torch::where(torch::rand({t.z.size(0)}, options) < 0.5, 1.0, -1.0).to(torch::kDouble);
  t.v = head == csrc::AttentionHead::kRelu ? torch::randn({4, 3}, options)
                                           : torch::randn({3}, options);
  return t;
}

double relative(const Tensor& actual, const Tensor& expected) {
  return ((actual - expected).norm() / expected.norm()).item<double>();
}

TEST(AttentionGradient, EqualsAutogradForEveryHeadLossAndSet) {
  torch::manual_seed(1);
  for (const bool causal : {false, true})
    for (const auto head :
         {csrc::AttentionHead::kLinear, csrc::AttentionHead::kRelu, csrc::AttentionHead::kQuad})
      for (const auto loss : {csrc::MarginLoss::kLogistic, csrc::MarginLoss::kExponential,
                              csrc::MarginLoss::kLinear}) {
        const auto t = theory(causal, head, loss);
        const auto K = torch::randn({3, 2}, torch::kDouble).requires_grad_();
        const auto Q = torch::randn({t.z.size(1), 2}, torch::kDouble).requires_grad_();
        const auto W = torch::matmul(K, Q.t());
        W.retain_grad();
        const auto risk = t.risk(W);
        risk.backward();

        std::vector<double> logits;
        csrc::AttentionState state;
        const auto merged = W.detach().contiguous();
        csrc::attention_logits(t.model(), merged.const_data_ptr<double>(), logits);
        csrc::evaluate_attention(t.model(), logits.data(), state);
        auto dW = torch::empty_like(merged);
        csrc::attention_gradient(t.model(), state, dW.mutable_data_ptr<double>());
        ASSERT_GT(W.grad().norm().item<double>(), 1e-6);
        EXPECT_NEAR(state.risk, risk.item<double>(), 1e-12 * std::abs(state.risk) + 1e-13);
        EXPECT_LT(relative(dW, W.grad()), 1e-9);
        EXPECT_LT(relative(torch::matmul(dW, Q.detach()), K.grad()), 1e-9);
        EXPECT_LT(relative(torch::matmul(dW.t(), K.detach()), Q.grad()), 1e-9);

        // The dual form: d risk / d W = -A*(g) for any reference token, here the first and the
        // last.
        const auto g = torch::tensor(state.g, torch::kDouble);
        for (const auto& alpha : {torch::zeros_like(t.row_ptr.diff()), t.row_ptr.diff() - 1}) {
          const auto tok = t.tok.defined() ? std::optional<Tensor>(t.tok) : std::nullopt;
          const auto [plus, mass] = attn_dual(t.x, t.z, t.row_ptr, alpha, g, tok);
          const auto [minus, mass2] = attn_dual(t.x, t.z, t.row_ptr, alpha, -g, tok);
          EXPECT_LT(relative(minus - plus, W.grad()), 1e-9);
        }
      }
}

TEST(AttentionGradient, KeepsItsRelativeAccuracyWhereTheSoftmaxIsSaturated) {
  // For two tokens, g = c s (1 - s) (difference of the scores) / n without any cancellation.
  const auto x = torch::tensor({{1.0, 0.0}, {0.0, 0.0}}, torch::kDouble);
  const auto z = torch::ones({1, 1}, torch::kDouble), one = torch::ones({1}, torch::kDouble);
  const auto v = torch::tensor({2.0, 0.0}, torch::kDouble);
  const auto row_ptr = torch::tensor({0, 2});
  const Theory pair{.x = x,
                    .z = z,
                    .row_ptr = row_ptr,
                    .tok = {},
                    .labels = one,
                    .v = v,
                    .head = csrc::AttentionHead::kLinear,
                    .loss = csrc::MarginLoss::kLinear,
                    .inputs = 1};
  const std::vector<double> far = {90, 0};
  csrc::AttentionState state;
  csrc::evaluate_attention(pair.model(), far.data(), state);
  const double expected = 2 * std::exp(-90.0);
  EXPECT_NEAR(state.g[1] / expected, 1, 1e-14);
  EXPECT_EQ(state.g[0], -state.g[1]);
}

}  // namespace
}  // namespace kktorch
