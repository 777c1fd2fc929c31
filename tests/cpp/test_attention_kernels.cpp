// The CPU kernels around Attention-BN, against the formulas in float64 and against the composition
// of ATen ops; the materialising attention path against the fused one; and how the CUDA kernels cut
// their work. CTest runs this suite once per instruction-set tier.
#include <ATen/OpMathType.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <thread>

#include "csrc/attention/bn_formulas.h"
#include "csrc/attention/bn_launch.h"
#include "ops/attention/normalise.h"
#include "ops/attention/softmax_attention.h"
#include "ops/attention_bn.h"
#include "ops/attention_bn_decode.h"
#include "ops/token_pool.h"
#include "tests/cpp/tier_testing.h"

namespace kktorch::detail {
namespace {

using torch::Tensor;

class AttentionKernels : public TierTest {};

struct Case {
  int64_t B, H, Hk, M, N, D;
  bool weighted, use_std;
  at::ScalarType dtype = at::kDouble;
};

// Single keys, odd widths, grouped heads, lengths beyond one block of rows (1024), few and many
// heads.
const Case kCases[] = {{1, 1, 1, 1, 1, 1, false, true},        {2, 3, 3, 5, 7, 33, false, true},
                       {2, 4, 2, 6, 9, 8, true, true},         {1, 2, 1, 3, 2500, 17, true, false},
                       {1, 1, 1, 2100, 1300, 16, false, true}, {3, 4, 4, 10, 10, 64, true, true}};

AttentionProblem problem_of(const Case& c, bool prefix) {
  const auto options = torch::dtype(c.dtype);
  const auto acc = torch::dtype(at::toOpMathType(c.dtype));
  Tensor weight;
  if (c.weighted) {
    weight = torch::rand({c.B, c.N}, acc) + 0.1;
    weight.select(1, 0).fill_(0);  // the shift is then not the first key
    weight.masked_fill_(torch::rand({c.B, c.N}) < 0.2, 0);
  }
  return {.query = torch::randn({c.B, c.H, c.M, c.D}, options),
          .key = torch::randn({c.B, c.N, c.Hk, c.D}, options).transpose(1, 2) + 3,
          .value = torch::randn({c.B, c.Hk, c.N, c.D}, options),
          .beta = torch::rand({c.H}, acc),
          .key_weight = weight,
          .attn_mask = {},
          .eps = 1e-5,
          .scale = 0.5,
          .dropout_p = 0,
          .use_std = c.use_std,
          .plain = false,
          .prefix = prefix,
          .is_causal = prefix,
          .query_offset = prefix ? 1 : 0};
}

double distance(const Tensor& a, const Tensor& b) {
  return a.numel() ? (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>() : 0;
}

// q^ and c^ by the definition, in float64.
NormalisedOperands defined_operands(const AttentionProblem& p) {
  const auto k = p.key.to(at::kDouble), q = p.query.to(at::kDouble);
  const auto n = p.key_weight.defined() ? p.key_weight.to(at::kDouble).view({p.B(), 1, p.N(), 1})
                                        : torch::ones({1, 1, p.N(), 1}, at::kDouble);
  const auto total = n.expand({p.B(), 1, p.N(), 1}).sum(2, true);
  const auto mu = (n * k).sum(2, true) / total;
  const auto variance = (n * (k - mu).square()).sum(2, true) / total;
  // One key alone has constant probability; r = 0 is the same function with exact zero gradients.
  const auto several = (n > 0).expand({p.B(), 1, p.N(), 1}).sum(2, true) > 1;
  const auto r = (p.use_std ? (variance + p.eps).rsqrt() : torch::ones_like(variance)) * several;
  const int64_t G = p.H() / p.Hk();
  const auto beta = p.beta.to(at::kDouble).view({1, p.H(), 1, 1});
  return {(q - beta * mu.repeat_interleave(G, 1)) * r.repeat_interleave(G, 1),
          torch::where(n > 0, (k - mu) * r, 0.0)};
}

TEST_F(AttentionKernels, GlobalOperandsEqualTheDefinition) {
  for (const auto& c : kCases) {
    const auto p = problem_of(c, false);
    if (p.key_weight.defined() && c.N == 1) continue;  // no key left
    Tensor statistics;
    const auto operands = cpu_normaliser().forward(p, statistics);
    const auto expected = defined_operands(p);
    // r may reach 1/sqrt(eps) = 316 and multiplies the rounding of inputs of size 3.
    EXPECT_LT(distance(operands.query, expected.query), 1e-11);
    EXPECT_LT(distance(operands.key, expected.key), 1e-11);
    const auto again = cpu_normaliser().recompute(p, statistics);
    EXPECT_TRUE(again.query.equal(operands.query) && again.key.equal(operands.key));
  }
}

TEST_F(AttentionKernels, NarrowTypesRoundOnce) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    auto c = kCases[2];
    c.dtype = dtype;
    const auto p = problem_of(c, false);
    Tensor statistics;
    const auto operands = cpu_normaliser().forward(p, statistics);
    const auto expected = defined_operands(p);
    // Half a unit in the last place of values below 16, and the float32 statistics.
    const double ulp = dtype == at::kFloat ? 1e-5 : dtype == at::kHalf ? 8.0 / 2048 : 8.0 / 256;
    EXPECT_LT(distance(operands.query, expected.query), ulp) << dtype;
    EXPECT_LT(distance(operands.key, expected.key), ulp) << dtype;
  }
}

TEST_F(AttentionKernels, CompositionOfAtenOpsAgrees) {
  for (const bool prefix : {false, true})
    for (const auto& c : kCases) {
      const auto p = problem_of(c, prefix);
      Tensor statistics, composed_statistics;
      const auto operands = cpu_normaliser().forward(p, statistics);
      const auto composed = aten_normaliser().forward(p, composed_statistics);
      const double scale = 1 + composed.query.abs().max().item<double>();
      EXPECT_LT(distance(operands.query, composed.query), 1e-9 * scale);
      EXPECT_LT(distance(operands.key, composed.key), 1e-11);
      EXPECT_LT(distance(statistics, composed_statistics), 1e-11);

      auto gq = torch::randn_like(p.query), gk = torch::randn_like(p.key);
      auto composed_gq = gq.clone(), composed_gk = gk.clone();
      const auto gb = cpu_normaliser().backward(p, operands, statistics, gq, gk);
      const auto composed_gb =
          aten_normaliser().backward(p, composed, composed_statistics, composed_gq, composed_gk);
      const double size = 1 + composed_gk.abs().max().item<double>();
      EXPECT_LT(distance(gq, composed_gq), 1e-9 * scale);
      EXPECT_LT(distance(gk, composed_gk), 1e-9 * size * scale);
      EXPECT_LT(distance(gb, composed_gb), 1e-9 * (1 + composed_gb.abs().max().item<double>()));
    }
}

TEST_F(AttentionKernels, ResultsDoNotDependOnTheNumberOfThreads) {
  const int threads = at::get_num_threads();
  for (const bool prefix : {false, true})
    for (const auto& c : kCases) {
      const auto p = problem_of(c, prefix);
      std::vector<Tensor> results[2];
      for (const int run : {0, 1}) {
        at::set_num_threads(run == 0 ? 1 : 4);
        Tensor statistics;
        const auto operands = cpu_normaliser().forward(p, statistics);
        auto gq = operands.query.clone(), gk = operands.key.clone();
        const auto gb = cpu_normaliser().backward(p, operands, statistics, gq, gk);
        results[run] = {operands.query, operands.key, statistics, gq, gk, gb};
      }
      for (size_t i = 0; i < results[0].size(); ++i)
        EXPECT_TRUE(results[0][i].equal(results[1][i]));
    }
  at::set_num_threads(threads);
}

// Callers may be threads of their own: what the kernels share is read only. ThreadSanitizer sees
// these threads, not those of OpenMP.
TEST_F(AttentionKernels, CallersInSeveralThreadsDoNotDisturbEachOther) {
  const auto results_of = [](const Tensor& x, bool is_causal) {
    const auto leaf = x.clone().requires_grad_();
    const auto out =
        attention_bn(leaf, leaf, leaf, {}, {}, {}, {}, 0.7, true, 0.1, "auto", is_causal);
    const auto pooled = std::get<0>(token_pool(leaf, 3));
    const auto grad = torch::autograd::grad({out.square().sum() + pooled.sum()}, {leaf})[0];
    const auto decoded = [&] {
      const torch::NoGradGuard no_grad;
      auto keys = torch::zeros_like(x), values = torch::zeros_like(x);
      auto length = torch::zeros({x.size(0)}, at::kLong);
      auto mean = torch::zeros({x.size(0), x.size(1), x.size(3)}, x.options());
      auto m2 = torch::zeros_like(mean);
      return attention_bn_decode(x, x, x, keys, values, length, mean, m2);
    }();
    return std::vector<Tensor>{out.detach(), pooled.detach(), grad, decoded};
  };
  constexpr size_t kCallers = 4;
  std::vector<Tensor> inputs;
  std::vector<std::vector<Tensor>> expected, results(kCallers);
  for (size_t i = 0; i < kCallers; ++i) {
    inputs.push_back(torch::randn({2, 2, 40, 8}, at::kDouble));
    expected.push_back(results_of(inputs[i], i % 2 == 1));
  }
  std::vector<std::thread> callers;
  for (size_t i = 0; i < kCallers; ++i)
    callers.emplace_back([&, i] { results[i] = results_of(inputs[i], i % 2 == 1); });
  for (auto& caller : callers) caller.join();
  for (size_t i = 0; i < kCallers; ++i)
    for (size_t j = 0; j < expected[i].size(); ++j)
      EXPECT_TRUE(results[i][j].equal(expected[i][j])) << i << " " << j;
}

TEST_F(AttentionKernels, MaterialisingPathAgreesWithTheFusedOne) {
  for (const bool causal : {false, true}) {
    const auto options = torch::dtype(at::kDouble);
    SoftmaxAttention p{.query = torch::randn({2, 4, 6, 5}, options),
                       .key = torch::randn({2, 2, 6, 5}, options),
                       .value = torch::randn({2, 2, 6, 3}, options),
                       .bias = torch::randn({2, 1, 1, 6}, options),
                       .is_causal = causal,
                       .scale = 0.7,
                       .dropout_p = 0};
    p.bias[1].fill_(-std::numeric_limits<double>::infinity());  // a sample that sees no key
    const auto fused = softmax_attention_forward(p), math = math_attention_forward(p);
    EXPECT_LT(distance(fused.out, math.out), 1e-12);
    EXPECT_EQ(math.out[1].abs().max().item<double>(), 0);
    const auto grad = torch::randn_like(math.out);
    const auto [q1, k1, v1] = softmax_attention_backward(p, fused, grad);
    const auto [q2, k2, v2] = math_attention_backward(p, math, grad);
    EXPECT_LT(distance(q1, q2) + distance(k1, k2) + distance(v1, v2), 1e-12);
  }
}

TEST_F(AttentionKernels, ConstantChannelHasNoVarianceAtAll) {
  auto p = problem_of(kCases[1], false);
  p.key.select(3, 2).fill_(1e6);
  for (const double eps : {0.0, 1e-5}) {
    p.eps = eps;
    Tensor statistics;
    const auto operands = cpu_normaliser().forward(p, statistics);
    EXPECT_EQ(operands.key.select(3, 2).abs().max().item<double>(), 0);
    const double r = statistics.select(2, 2).select(2, 2).max().item<double>();
    EXPECT_EQ(r, eps > 0 ? std::sqrt(1 / eps) : 0);  // eps = 0: a dead channel is ignored
    EXPECT_TRUE(operands.query.isfinite().all().item<bool>());
  }
}

// Widths around those of vectors; float32 and float64, and half types against their own values.
const int64_t kWidths[] = {1, 5, 16, 33, 64};

double rounding_of(at::ScalarType dtype) {
  return dtype == at::kDouble  ? 1e-13
         : dtype == at::kFloat ? 2e-5
         : dtype == at::kHalf  ? 4e-3
                               : 3e-2;
}

TEST_F(AttentionKernels, PoolingIsTheMeanOfTheValidTokens) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t C : kWidths) {
      auto x = torch::randn({2, 3, 11, C}, dtype).requires_grad_();
      const auto padding = torch::rand({2, 11}) < 0.3;
      const auto [pooled, count] = token_pool(x, 3, padding, "avg", "ceil", 1);
      const auto weight = torch::rand_like(pooled);
      pooled.backward(weight);
      for (int64_t w = 0; w < 5; ++w) {
        const int64_t begin = w == 0 ? 0 : 3 * w - 2,
                      size = w == 0 ? 1 : std::min<int64_t>(3, 11 - begin);
        const auto valid = padding.narrow(1, begin, size).logical_not().to(at::kDouble);
        const auto n = valid.sum(1).clamp_min(1).view({2, 1, 1});
        const auto tokens = x.detach().to(at::kDouble).narrow(2, begin, size);
        const auto mean = (tokens * valid.view({2, 1, size, 1})).sum(2) / n;
        EXPECT_LT(distance(pooled.select(2, w), mean), rounding_of(dtype)) << dtype << " " << C;
        const auto share = weight.select(2, w).to(at::kDouble) / n;
        EXPECT_LT(distance(x.grad().narrow(2, begin, size),
                           share.unsqueeze(2) * valid.view({2, 1, size, 1})),
                  rounding_of(dtype))
            << dtype << " " << C;
      }
    }
  }
}

TEST_F(AttentionKernels, DecodingEqualsTheCausalForwardPass) {
  // Few heads: the 700 keys of a head are cut into parts that are merged.
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t D : kWidths) {
      const int64_t N = 700, Dv = D + 2;
      const auto random = [&](int64_t heads, int64_t width) {
        return torch::randn({1, heads, N, width}, dtype);
      };
      const auto q = random(2, D), k = random(1, D), v = random(1, Dv);
      const auto acc = torch::dtype(at::toOpMathType(dtype));
      auto keys = torch::full({1, 1, N, D}, NAN, dtype),
           values = torch::full({1, 1, N, Dv}, NAN, dtype);
      auto length = torch::zeros({1}, at::kLong);
      auto mean = torch::zeros({1, 1, D}, acc), m2 = torch::zeros({1, 1, D}, acc);
      std::vector<Tensor> out;
      for (const auto& [begin, size] : {std::pair<int64_t, int64_t>{0, 690}, {690, 1}, {691, 9}}) {
        const auto rows = [begin = begin, size = size](const Tensor& t) {
          return t.narrow(2, begin, size);
        };
        out.push_back(attention_bn_decode(rows(q), rows(k), rows(v), keys, values, length, mean, m2,
                                          {}, 0.7, true, 0.1, {}, true));
      }
      const auto wide = [](const Tensor& t) { return t.to(at::kDouble); };
      const auto expected = attention_bn(wide(q), wide(k), wide(v), {}, {}, {}, {}, 0.7, true, 0.1,
                                         "auto", true, {}, 0.0, {}, true);
      EXPECT_LT(distance(torch::cat(out, 2), expected), rounding_of(dtype)) << dtype << " " << D;
    }
  }
}

TEST(AttentionFormulas, MergedMomentsAreThoseOfTheUnion) {
  const auto x = torch::randn({10}, at::kDouble) + 100;
  const auto moments = [](const Tensor& t) {
    return csrc::Moments<double>{static_cast<double>(t.numel()), t.mean().item<double>(),
                                 (t - t.mean()).square().sum().item<double>()};
  };
  const auto merged =
      csrc::merge(csrc::merge(csrc::Moments<double>{0, 0, 0}, moments(x.narrow(0, 0, 3))),
                  moments(x.narrow(0, 3, 7)));
  const auto whole = moments(x);
  EXPECT_DOUBLE_EQ(merged.n, 10);
  EXPECT_NEAR(merged.mean, whole.mean, 1e-12);
  EXPECT_NEAR(merged.m2, whole.m2, 1e-10);
}

TEST(AttentionLaunch, CoversEveryRowAndChannelOnce) {
  for (const int64_t D : {1, 3, 64, 65, 256}) {
    const auto launch = csrc::bn_launch(D);
    EXPECT_EQ(launch.channels * launch.lanes, csrc::kBnThreads);
    EXPECT_TRUE(launch.channels >= D || launch.channels == 64) << "wider heads are walked";
  }
  for (const int64_t rows : {1, 255, 256, 257, 100000}) {
    const int64_t blocks = csrc::bn_blocks(rows);
    EXPECT_GE(blocks * csrc::kBnRows, rows);
    EXPECT_LT((blocks - 1) * csrc::kBnRows, rows);
    const auto last = csrc::bn_unit(3 * blocks - 1, rows);
    EXPECT_EQ(last.head, 2);
    EXPECT_EQ(last.block, blocks - 1);
  }
}

TEST(AttentionLaunch, WorkspaceHoldsMomentsAndSums) {
  const csrc::BnShape s{.B = 2, .H = 6, .Hk = 3, .M = 300, .N = 1000, .D = 8};
  EXPECT_EQ(csrc::bn_workspace_size(s), std::max(2 * 3 * 4 * (1 + 16), 2 * (6 * 2 + 3) * 16));
}

}  // namespace
}  // namespace kktorch::detail
