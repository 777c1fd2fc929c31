// The attention core against the literal formula in float64 (attention_bn_ref and its autograd).
// CTest runs this suite once per instruction-set tier.
#include <ATen/OpMathType.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "ops/attention/backends.h"
#include "ops/attention_bn.h"
#include "tests/cpp/tier_testing.h"

namespace kktorch::detail {
namespace {

using torch::Tensor;

class AttentionCore : public TierTest {};

enum class Mask { kNone, kWeights, kBoolean, kFloat, kCausal, kEarlyCausal };

struct Case {
  int64_t B, H, Hk, M, N, D, Dv;
  Mask mask;
};

// Single rows, odd sizes, sizes beyond the blocks of keys (256, 480) and of queries (64, 480), the
// widest heads, grouped heads, many heads (tasks are heads), one (tasks are parts of it), and few
// queries of many keys (tasks are parts of the keys, some of which a causal row does not see).
const Case kCases[] = {
    {1, 1, 1, 1, 1, 1, 1, Mask::kNone},         {1, 3, 3, 5, 7, 33, 3, Mask::kNone},
    {3, 4, 2, 6, 9, 8, 17, Mask::kWeights},     {1, 2, 1, 70, 130, 64, 64, Mask::kBoolean},
    {2, 4, 4, 97, 97, 31, 64, Mask::kCausal},   {1, 1, 1, 500, 601, 16, 40, Mask::kFloat},
    {1, 1, 1, 130, 515, 20, 16, Mask::kCausal}, {1, 2, 2, 3, 1000, 256, 256, Mask::kWeights},
    {1, 2, 1, 5, 4099, 20, 33, Mask::kFloat},   {2, 1, 1, 1, 2050, 8, 8, Mask::kWeights},
    {1, 1, 1, 3, 3000, 16, 16, Mask::kBoolean}, {1, 1, 1, 90, 2600, 16, 24, Mask::kEarlyCausal}};

AttentionProblem problem_of(const Case& c, at::ScalarType dtype) {
  const auto acc = at::toOpMathType(dtype);
  const auto random = [&](int64_t heads, int64_t length, int64_t width) {
    return torch::randn({c.B, length, heads, width}, dtype).transpose(1, 2);
  };
  AttentionProblem p{.query = random(c.H, c.M, c.D),
                     .key = random(c.Hk, c.N, c.D) + 1,
                     .value = random(c.Hk, c.N, c.Dv),
                     .beta = torch::rand({c.H}, acc),
                     .key_weight = {},
                     .attn_mask = {},
                     .eps = 0.1,
                     .scale = 0.7 / std::sqrt(c.D),
                     .dropout_p = 0,
                     .use_std = true,
                     .plain = false,
                     .prefix = false,
                     .is_causal = c.mask == Mask::kCausal || c.mask == Mask::kEarlyCausal,
                     .query_offset = 0};
  if (c.mask == Mask::kWeights) {
    p.key_weight = torch::rand({c.B, c.N}, acc) + 0.1;
    p.key_weight.select(1, 0).fill_(0);  // the shift is then not the first key
    p.key_weight.masked_fill_(torch::rand({c.B, c.N}) < 0.2, 0);
  }
  if (c.mask == Mask::kBoolean) {
    p.attn_mask = torch::rand({c.M, c.N}) < 0.7;
    p.attn_mask[1].fill_(false);  // a query that sees no key
  }
  if (c.mask == Mask::kFloat) p.attn_mask = torch::randn({c.B, 1, c.M, c.N}, acc);
  if (c.mask == Mask::kCausal) p.query_offset = c.N - c.M;
  if (c.mask == Mask::kEarlyCausal) p.query_offset = 5;  // no query sees the last keys
  return p;
}

std::optional<Tensor> optional(const Tensor& t) {
  return t.defined() ? std::optional<Tensor>(t.is_floating_point() ? t.to(at::kDouble) : t)
                     : std::nullopt;
}

/// out, and the gradients of query, key, value and beta.
std::vector<Tensor> defined_results(const AttentionProblem& p, const Tensor& grad_out) {
  std::vector<Tensor> inputs;
  for (const auto& t : {p.query, p.key, p.value, p.beta})
    inputs.push_back(t.to(at::kDouble).detach().requires_grad_());
  const auto out = attention_bn_ref(
      inputs[0], inputs[1], inputs[2], inputs[3], {}, optional(p.attn_mask), optional(p.key_weight),
      1.0, p.use_std, p.eps, "global", p.is_causal,
      p.is_causal ? std::optional<c10::SymInt>(p.query_offset) : std::nullopt, 0.0, p.scale, true,
      /*literal=*/true);
  auto results = torch::autograd::grad({out}, inputs, {grad_out.to(at::kDouble)});
  results.insert(results.begin(), out.detach());
  return results;
}

std::vector<Tensor> core_results(const AttentionProblem& p, const Tensor& grad_out) {
  const auto result = core_backend().forward(p);
  const auto grads = core_backend().backward(p, result, grad_out);
  return {result.out, grads.query, grads.key, grads.value, grads.beta};
}

double largest(const Tensor& t) { return t.to(at::kDouble).abs().max().item<double>(); }

// Rounding of the operands, of P and of dS, relative to the largest entry.
double tolerance_of(at::ScalarType dtype) {
  return dtype == at::kDouble  ? 1e-12
         : dtype == at::kFloat ? 2e-5
         : dtype == at::kHalf  ? 4e-3
                               : 3e-2;
}

TEST_F(AttentionCore, EqualsTheDefinition) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    for (size_t i = 0; i < std::size(kCases); ++i) {
      const auto p = problem_of(kCases[i], dtype);
      const auto grad_out = torch::randn({p.B(), p.H(), p.M(), p.Dv()}, dtype);
      const auto expected = defined_results(p, grad_out), computed = core_results(p, grad_out);
      for (size_t t = 0; t < expected.size(); ++t)
        EXPECT_LE(largest(computed[t].to(at::kDouble) - expected[t]),
                  tolerance_of(dtype) * (1 + largest(expected[t])))
            << dtype << ", case " << i << ", result " << t;
    }
  }
}

TEST_F(AttentionCore, DoesNotDependOnTheNumberOfThreads) {
  const int threads = at::get_num_threads();
  for (const auto& c : kCases) {
    const auto p = problem_of(c, at::kFloat);
    const auto grad_out = torch::randn({p.B(), p.H(), p.M(), p.Dv()});
    at::set_num_threads(1);
    const auto alone = core_results(p, grad_out);
    at::set_num_threads(4);
    const auto together = core_results(p, grad_out);
    for (size_t t = 0; t < alone.size(); ++t) EXPECT_TRUE(alone[t].equal(together[t])) << t;
  }
  at::set_num_threads(threads);
}

TEST_F(AttentionCore, RowsThatSeeNoKeyAreZero) {
  const std::pair<int, at::ScalarType> cases[] = {
      {3, at::kFloat}, {3, at::kBFloat16}, {10, at::kFloat}};
  for (const auto& [i, dtype] : cases) {
    const auto p = problem_of(kCases[i], dtype);  // row 1 sees nothing
    const auto result = core_backend().forward(p);
    EXPECT_EQ(largest(result.out.select(2, 1)), 0);
    EXPECT_TRUE(result.logsumexp.select(2, 1).isneginf().all().item<bool>());
    const auto grads = core_backend().backward(p, result, torch::randn_like(result.out));
    EXPECT_EQ(largest(grads.query.select(2, 1)), 0);
    EXPECT_TRUE(grads.key.isfinite().all().item<bool>());
  }
}

TEST_F(AttentionCore, PaddingMayHoldAnything) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    auto p = problem_of(kCases[2], dtype);
    const auto grad_out = torch::randn({p.B(), p.H(), p.M(), p.Dv()}, dtype);
    const auto clean = core_results(p, grad_out);
    const auto padding = (p.key_weight == 0).view({p.B(), 1, p.N(), 1});
    p.key = p.key.masked_fill(padding, NAN), p.value = p.value.masked_fill(padding, INFINITY);
    const auto filled = core_results(p, grad_out);
    for (size_t t = 0; t < clean.size(); ++t) EXPECT_TRUE(clean[t].equal(filled[t])) << t;
    EXPECT_EQ(largest(filled[2].masked_fill(padding.logical_not(), 0)), 0);
    EXPECT_EQ(largest(filled[3].masked_fill(padding.logical_not(), 0)), 0);
  }
}

TEST_F(AttentionCore, NanStaysInItsSample) {
  auto p = problem_of(kCases[4], at::kFloat);
  const auto grad_out = torch::randn({p.B(), p.H(), p.M(), p.Dv()});
  const auto clean = core_results(p, grad_out);
  p.key[0].fill_(NAN), p.value[0].fill_(INFINITY);
  const auto spoilt = core_results(p, grad_out);
  for (size_t t = 0; t < 4; ++t) EXPECT_TRUE(clean[t][1].equal(spoilt[t][1])) << t;
  EXPECT_TRUE(spoilt[0][0].isnan().all().item<bool>());
}

TEST_F(AttentionCore, CausalRowsDoNotFeelTheFuture) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    auto p = problem_of(kCases[6], dtype);
    p.plain = true;  // no statistics of all keys
    const int64_t row = 77, key = p.query_offset + row;
    const auto before = core_backend().forward(p).out.narrow(2, 0, row).clone();
    const auto later = [&](Tensor& t) { return t.narrow(2, key, p.N() - key); };
    later(p.key).fill_(50), later(p.value).fill_(-3);
    EXPECT_TRUE(core_backend().forward(p).out.narrow(2, 0, row).equal(before)) << dtype;
  }
}

TEST_F(AttentionCore, LogsumexpIsThatOfTheLogits) {
  auto p = problem_of({2, 2, 2, 5, 300, 8, 8, Mask::kNone}, at::kDouble);
  p.plain = true;
  const auto expected = (p.query.matmul(p.key.transpose(2, 3)) * p.scale).logsumexp(3);
  EXPECT_LT(largest(core_backend().forward(p).logsumexp - expected), 1e-12);
}

TEST_F(AttentionCore, TakesWhatItsBlocksAreMadeFor) {
  auto p = problem_of(kCases[1], at::kFloat);
  EXPECT_TRUE(core_takes(p));
  p.dropout_p = 0.5;
  EXPECT_FALSE(core_takes(p));
  EXPECT_FALSE(core_takes(problem_of({1, 1, 1, 2, 2, 257, 2, Mask::kNone}, at::kFloat)));
}

}  // namespace
}  // namespace kktorch::detail
