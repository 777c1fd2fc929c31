// The layers against torch::nn, against the formula of Attention-BN, and against a loop over
// samples.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/attention_bnsh.h"
#include "models/encoder_layer.h"
#include "models/token_norm.h"
#include "tests/cpp/model_testing.h"

namespace kktorch {
namespace {

using torch::Tensor;
using namespace testing_models;

void copy_state(const torch::nn::Module& from, torch::nn::Module& to) {
  torch::NoGradGuard no_grad;
  const auto source = from.named_parameters(), target = to.named_parameters();
  ASSERT_EQ(source.keys(), target.keys());
  for (const auto& entry : source) target[entry.key()].copy_(entry.value());
}

AttentionBNSHOptions small(const std::string& variant) {
  return {
      .embed_dim = 12, .num_heads = 3, .batch_first = true, .variant = variant, .beta_init = 0.7};
}

// ---- AttentionBNSH against torch::nn::MultiheadAttention ----

struct MhaCase {
  const char* name;
  bool bias, other_widths, self_attention;
};

class LikeMultiheadAttention : public testing::TestWithParam<MhaCase> {
 protected:
  static constexpr int64_t kBatch = 2, kQueries = 4, kKeys = 5, kWidth = 12, kHeads = 3;

  torch::nn::MultiheadAttention peer() const {
    auto options = torch::nn::MultiheadAttentionOptions(kWidth, kHeads).bias(GetParam().bias);
    if (GetParam().other_widths) options.kdim(6).vdim(6);
    return torch::nn::MultiheadAttention(options);
  }

  AttentionBNSH layer(const std::string& variant) const {
    AttentionBNSHOptions options{.embed_dim = kWidth, .num_heads = kHeads, .bias = GetParam().bias};
    if (GetParam().other_widths) options.kdim = 6, options.vdim = 6;
    // Attention-BN that neither re-centres nor divides is softmax attention.
    options.variant = variant, options.beta_init = 0, options.use_std = false;
    return AttentionBNSH(options);
  }
};

TEST_P(LikeMultiheadAttention, SameOutputsAndWeights) {
  auto expected = randomised(peer());
  const auto keys = GetParam().self_attention ? kQueries : kKeys;
  const auto query = random({kQueries, kBatch, kWidth});
  const auto memory = random({keys, kBatch, GetParam().other_widths ? 6 : kWidth});
  const auto& key = GetParam().self_attention ? query : memory;
  const auto padding = padding_mask({keys, keys - 2}, keys);
  const auto forbidden = torch::ones({kQueries, keys}, torch::kBool).triu(2);
  const auto additive = random({kQueries, keys});
  // torch::nn adds its attn_mask, whatever the type (and takes none per head: tests/python has
  // that).
  const auto as_additive =
      torch::zeros({kQueries, keys}, torch::kDouble).masked_fill(forbidden, -INFINITY);
  for (const auto* variant : {"softmax", "bn"}) {
    auto actual = layer(variant);
    actual->to(torch::kDouble);
    actual->eval();
    copy_state(*expected, *actual);
    for (const auto& pad : {Tensor(), padding}) {
      for (const auto& [mask, mask_of_peer] :
           {std::pair{Tensor(), Tensor()}, {forbidden, as_additive}, {additive, additive}}) {
        for (const bool average : {true, false}) {
          const auto [out, weights] = actual(query, key, key, pad, true, mask, average);
          const auto [out2, weights2] = expected(query, key, key, pad, true, mask_of_peer, average);
          expect_close(out, out2);
          expect_close(weights, weights2);
          expect_close(std::get<0>(actual(query, key, key, pad, false, mask)), out2);
        }
      }
    }
  }
}

TEST_P(LikeMultiheadAttention, ASeedGivesTheSameInitialValues) {
  torch::manual_seed(3);
  const auto expected = peer()->named_parameters();
  torch::manual_seed(3);
  const auto actual = layer("softmax")->named_parameters();
  ASSERT_EQ(actual.keys(), expected.keys());
  for (const auto& entry : expected) {
    EXPECT_TRUE(torch::equal(actual[entry.key()], entry.value())) << entry.key();
  }
}

INSTANTIATE_TEST_SUITE_P(AttentionBNSH, LikeMultiheadAttention,
                         testing::Values(MhaCase{"Self", true, false, true},
                                         MhaCase{"Cross", true, false, false},
                                         MhaCase{"NoBias", false, false, true},
                                         MhaCase{"NoBiasCross", false, false, false},
                                         MhaCase{"OtherWidths", true, true, false}),
                         [](const auto& info) { return info.param.name; });

// ---- AttentionBNSH itself ----

class EachVariant : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(AttentionBNSH, EachVariant, testing::Values("softmax", "bn"),
                         [](const auto& info) { return std::string(info.param); });

TEST(AttentionBNSH, BnIsTheFormula) {
  for (const auto* mode : {"fixed", "scalar", "per_head"}) {
    for (const bool use_std : {true, false}) {
      auto options = small("bn");
      options.beta_mode = mode, options.use_std = use_std, options.eps = 1e-3;
      auto layer = randomised(AttentionBNSH(options));
      const auto x = random({2, 5, 12});
      const auto heads = torch::linear(x, layer->in_proj_weight, layer->in_proj_bias)
                             .unflatten(-1, {3, 3, 4})
                             .permute({2, 0, 3, 1, 4});
      const auto q = heads[0], k = heads[1], v = heads[2];
      const auto mu = k.mean(2, true), variance = (k - mu).square().mean(2, true);
      const auto beta = layer->beta.defined() ? layer->beta.reshape({1, -1, 1, 1})
                                              : torch::full({1, 1, 1, 1}, 0.7, torch::kDouble);
      const auto a = use_std ? 1 / (variance + 1e-3) : torch::ones_like(mu);
      const auto logits = torch::matmul(a * (q - beta * mu), (k - beta * mu).transpose(-1, -2)) / 2;
      const auto out = torch::matmul(logits.softmax(-1), v).transpose(1, 2).flatten(2);
      const auto [actual, weights] = layer->forward(x, x, x, {}, true, {}, false);
      expect_close(actual, layer->out_proj(out));
      expect_close(weights, logits.softmax(-1));
    }
  }
}

TEST_P(EachVariant, PaddedBatchIsTheLoopOverSamples) {
  auto options = small(GetParam());
  options.num_heads = 6, options.num_kv_heads = 2, options.value_head_dim = 3;
  auto layer = randomised(AttentionBNSH(options));
  const std::vector<int64_t> lengths{5, 1, 3};
  const auto padding = padding_mask(lengths, 5);
  const auto query = random({3, 4, 12});
  const auto memory = random({3, 5, 12}).masked_fill(padding.unsqueeze(-1), kNaN);
  const auto [out, weights] = layer(query, memory, memory, padding, true);
  for (int64_t b = 0; b < 3; ++b) {
    const auto valid = memory[b].slice(0, 0, lengths[b]);
    const auto [one, one_weights] = layer(query[b], valid, valid, Tensor(), true);
    expect_close(out[b], one);
    expect_close(weights[b].slice(1, 0, lengths[b]), one_weights);
    EXPECT_EQ(weights[b].slice(1, lengths[b]).count_nonzero().item<int64_t>(), 0);
  }
}

TEST_P(EachVariant, LayoutsAgree) {
  auto layer = randomised(AttentionBNSH(small(GetParam())));
  auto options = small(GetParam());
  options.batch_first = false;
  auto sequence_first = randomised(AttentionBNSH(options));
  const auto query = random({2, 4, 12}), memory = random({2, 5, 12});
  const auto expected = std::get<0>(layer(query, memory, memory));
  const auto transposed = memory.transpose(0, 1);
  expect_close(
      std::get<0>(sequence_first(query.transpose(0, 1), transposed, transposed)).transpose(0, 1),
      expected);
  expect_close(std::get<0>(sequence_first(query[1], memory[1], memory[1])), expected[1]);
}

TEST_P(EachVariant, CausalSeesNoFuture) {
  auto layer = randomised(AttentionBNSH(small(GetParam())));
  const auto x = random({2, 6, 12});
  auto changed = x.clone();
  changed.slice(1, 4).add_(5);
  for (const auto& padding : {Tensor(), padding_mask({6, 3}, 6)}) {
    const auto out = std::get<0>(layer(x, x, x, padding, false, Tensor(), true, true));
    const auto out2 =
        std::get<0>(layer(changed, changed, changed, padding, false, Tensor(), true, true));
    expect_close(out2.slice(1, 0, 4), out.slice(1, 0, 4));
    EXPECT_FALSE(torch::allclose(out2.slice(1, 4), out.slice(1, 4)));
    // The last row of a causal layer sees everything, and its statistics are those of all keys.
    expect_close(out.select(1, 5), std::get<0>(layer(x, x, x, padding)).select(1, 5));
  }
}

TEST_P(EachVariant, GroupedHeadsAreRepeatedHeads) {
  auto options = small(GetParam());
  options.num_heads = 4, options.num_kv_heads = 2;
  auto grouped = randomised(AttentionBNSH(options));
  options.num_kv_heads.reset();
  auto full = randomised(AttentionBNSH(options));
  torch::NoGradGuard no_grad;
  const auto repeat = [&](const Tensor& rows) {  // [E + 2 Hk D, ...] -> [3 E, ...]
    const auto parts = rows.split_with_sizes(grouped->projection_rows());
    const auto twice = [](const Tensor& t) {
      return t.unflatten(0, {2, 3}).repeat_interleave(2, 0).flatten(0, 1);
    };
    return torch::cat({parts[0], twice(parts[1]), twice(parts[2])});
  };
  full->in_proj_weight.copy_(repeat(grouped->in_proj_weight));
  full->in_proj_bias.copy_(repeat(grouped->in_proj_bias));
  const auto x = random({2, 5, 12});
  const auto [out, weights] = grouped->forward(x, x, x, {}, true, {}, false);
  full->out_proj->weight.copy_(grouped->out_proj->weight);
  full->out_proj->bias.copy_(grouped->out_proj->bias);
  const auto [expected, expected_weights] = full->forward(x, x, x, {}, true, {}, false);
  expect_close(out, expected);
  expect_close(weights, expected_weights);
}

TEST_P(EachVariant, AQueryThatSeesNothingGivesTheBiasAndFiniteGradients) {
  auto layer = randomised(AttentionBNSH(small(GetParam())));
  const auto x = random({2, 3, 12}).requires_grad_();
  const auto out = std::get<0>(layer(x, x, x, padding_mask({3, 0}, 3)));
  expect_close(out[1], layer->out_proj->bias.expand({3, 12}));
  out.square().sum().backward();
  EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
  EXPECT_TRUE(layer->in_proj_weight.grad().isfinite().all().item<bool>());
}

TEST_P(EachVariant, WithoutStatsMaskPaddingIsIgnored) {
  auto options = small(GetParam());
  options.stats_mask = false;
  auto layer = randomised(AttentionBNSH(options));
  const auto x = random({2, 5, 12});
  expect_close(std::get<0>(layer(x, x, x, padding_mask({5, 2}, 5))), std::get<0>(layer(x, x, x)),
               0);
}

TEST_P(EachVariant, DropoutIsForTrainingAndNotForTheWeights) {
  auto options = small(GetParam());
  options.dropout = 0.5;
  auto layer = randomised(AttentionBNSH(options));
  const auto x = random({2, 5, 12});
  const auto [out, weights] = layer->forward(x, x, x, {}, true);
  layer->train();
  const auto [dropped, same_weights] = layer->forward(x, x, x, {}, true);
  EXPECT_FALSE(torch::allclose(dropped, out));
  expect_close(same_weights, weights);
}

TEST(AttentionBNSH, LearnedBetaHasItsShapeAndAGradient) {
  for (const auto& [mode, size] : {std::pair<const char*, int64_t>{"scalar", 1}, {"per_head", 3}}) {
    auto options = small("bn");
    options.beta_mode = mode;
    AttentionBNSH layer(options);
    EXPECT_EQ(layer->beta.numel(), size);
    EXPECT_TRUE((layer->beta == 0.7f).all().item<bool>());
    const auto x = torch::randn({2, 5, 12});
    std::get<0>(layer(x, x, x)).square().sum().backward();
    EXPECT_EQ(layer->beta.grad().count_nonzero().item<int64_t>(), size);
  }
  EXPECT_FALSE(AttentionBNSH(small("bn"))->named_parameters().contains("beta"));
}

TEST(AttentionBNSH, CloneIsIndependent) {
  auto layer = randomised(AttentionBNSH(small("bn")));
  const auto copy = std::dynamic_pointer_cast<AttentionBNSHImpl>(layer->clone());
  ASSERT_TRUE(copy);
  const auto x = random({2, 5, 12});
  const auto expected = std::get<0>(layer(x, x, x));
  expect_close(std::get<0>(copy->forward(x, x, x)), expected, 0);
  torch::NoGradGuard no_grad;
  layer->in_proj_weight.zero_();
  expect_close(std::get<0>(copy->forward(x, x, x)), expected, 0);
}

// ---- errors ----

TEST(AttentionBNSH, RefusesOptions) {
  const auto refused = [](auto change, const std::string& message) {
    auto options = small("bn");
    change(options);
    expect_error([&] { AttentionBNSH layer(options); }, "AttentionBNSH: expected " + message);
  };
  refused([](auto& o) { o.beta_mode = "each"; },
          "beta_mode in {fixed, scalar, per_head}, but got 'each'");
  refused([](auto& o) { o.embed_dim = 0; }, "embed_dim >= 1, but got 0");
  refused([](auto& o) { o.num_heads = 5; }, "embed_dim divisible by num_heads, but got 12 and 5");
  refused([](auto& o) { o.num_kv_heads = 2; },
          "num_heads divisible by num_kv_heads, but got 3 and 2");
  refused([](auto& o) { o.value_head_dim = 0; }, "value_head_dim >= 1, but got 0");
  refused([](auto& o) { o.dropout = 1; }, "dropout in [0, 1), but got 1");
  refused([](auto& o) { o.beta_init = kNaN; }, "a finite beta_init, but got nan");
  refused([](auto& o) { o.eps = -1; }, "finite eps >= 0, but got -1");
}

TEST(AttentionBNSH, RefusesInputs) {
  AttentionBNSH layer(small("bn"));
  const auto x = torch::zeros({2, 5, 12}), y = torch::zeros({2, 4, 12});
  const auto refused = [&](const std::string& message, auto... arguments) {
    expect_error([&] { layer->forward(arguments...); }, "AttentionBNSH: expected " + message);
  };
  refused(
      "query, key, value of 2 or 3 dimensions and widths 12, 12, 12, but got [2, 5], [2, 5, 12], "
      "[2, 5, 12]",
      x.select(2, 0), x, x);
  refused(
      "key and value of equal length and the batch size of query, but got [2, 5, 12], [2, 5, 12], "
      "[2, 4, 12]",
      x, x, y);
  refused("as many queries as keys with is_causal, but got 4 and 5", y, x, x, Tensor(), false,
          Tensor(), true, true);
  refused("key_padding_mask bool [2, 5], but got Float [2, 5]", x, x, x, torch::zeros({2, 5}));
  refused("key_padding_mask bool [2, 5], but got Bool [2, 4]", x, x, x,
          torch::zeros({2, 4}, torch::kBool));
  refused("attn_mask bool or floating [5, 5] or [6, 5, 5], but got Bool [2, 5, 5]", x, x, x,
          Tensor(), false, torch::zeros({2, 5, 5}, torch::kBool));
  refused("attn_mask bool or floating [5, 5] or [6, 5, 5], but got Long [5, 5]", x, x, x, Tensor(),
          false, torch::zeros({5, 5}, torch::kLong));
}

// ---- TokenNorm ----

TEST(TokenNorm, MaskedIsBatchNormOfTheValidTokens) {
  auto norm = randomised(TokenNorm("batch_masked", 4));
  torch::nn::BatchNorm1d expected(4);
  expected->to(torch::kDouble);
  copy_state(*norm, *expected);
  norm->train();
  const auto padding = padding_mask({5, 2, 0}, 5);
  for (int step = 0; step < 3; ++step) {
    const auto x = random({3, 5, 4}) * 2 + 1;
    const auto valid = padding.logical_not();
    const auto out = norm(x.masked_fill(padding.unsqueeze(-1), kNaN), padding).index({valid});
    expect_close(out, expected(x.index({valid})));
  }
  expect_close(norm->running_mean, expected->running_mean);
  expect_close(norm->running_var, expected->running_var);
  EXPECT_EQ(norm->num_batches_tracked.item<int64_t>(), 3);
  norm->eval();
  expected->eval();
  const auto x = random({3, 5, 4});
  expect_close(norm(x, padding), expected(x.flatten(0, 1)).view_as(x));
}

TEST(TokenNorm, BatchCountsPaddingAndLayerSeesOneToken) {
  const auto x = random({3, 5, 4});
  const auto padding = padding_mask({5, 2, 1}, 5);
  auto batch = randomised(TokenNorm("batch", 4));
  torch::nn::BatchNorm1d batch_peer(4);
  batch_peer->to(torch::kDouble);
  copy_state(*batch, *batch_peer);
  batch->train();
  expect_close(batch(x, padding), batch_peer(x.flatten(0, 1)).view_as(x));
  expect_close(batch->running_var, batch_peer->running_var);
  auto layer = randomised(TokenNorm("layer", 4));
  expect_close(layer(x, padding), torch::layer_norm(x, {4}, layer->weight, layer->bias));
  EXPECT_TRUE(layer->buffers().empty());
}

TEST(TokenNorm, RefusesAnUnknownKind) {
  expect_error([] { TokenNorm norm("group", 4); },
               "TokenNorm: expected kind in {layer, batch, batch_masked}, but got 'group'");
}

// ---- EncoderLayer ----

TEST(EncoderLayer, IsTransformerEncoderLayer) {
  auto expected = randomised(torch::nn::TransformerEncoderLayer(
      torch::nn::TransformerEncoderLayerOptions(12, 3).dim_feedforward(20).activation(
          torch::kReLU)));
  EncoderLayer actual(
      EncoderLayerOptions{.attention = {.embed_dim = 12, .num_heads = 3, .variant = "softmax"},
                          .ffn = 20,
                          .activation = "relu"});
  actual->to(torch::kDouble);
  actual->eval();
  copy_state(*expected, *actual);
  const auto x = random({2, 5, 12});
  const auto padding = padding_mask({5, 3}, 5);
  const auto forbidden = torch::ones({5, 5}, torch::kBool).triu(1);
  const auto additive = torch::zeros({5, 5}, torch::kDouble).masked_fill(forbidden, -INFINITY);
  const auto peer = expected(x.transpose(0, 1), additive, padding).transpose(0, 1);
  expect_close(actual(x, padding, forbidden), peer);
  expect_close(actual(x, padding, Tensor(), /*is_causal=*/true), peer);
}

TEST(EncoderLayer, NormFirstNormalisesTheBranches) {
  EncoderLayerOptions options{.attention = small("bn"), .ffn = 20, .norm_first = true};
  auto layer = randomised(EncoderLayer(options));
  const auto x = random({2, 5, 12});
  const auto normed = layer->norm1(x);
  const auto y = x + std::get<0>(layer->self_attn(normed, normed, normed));
  expect_close(layer(x), y + layer->linear2(torch::gelu(layer->linear1(layer->norm2(y)))));
}

TEST(EncoderLayer, RefusesOptions) {
  const auto refused = [](auto change, const std::string& message) {
    EncoderLayerOptions options{.attention = small("bn"), .ffn = 20};
    change(options);
    expect_error([&] { EncoderLayer layer(options); }, message);
  };
  refused([](auto& o) { o.ffn = 0; }, "EncoderLayer: expected ffn >= 1, but got 0");
  refused([](auto& o) { o.dropout = -0.1; },
          "EncoderLayer: expected dropout in [0, 1), but got -0.1");
  refused([](auto& o) { o.activation = "tanh"; },
          "EncoderLayer: expected activation in {gelu, relu}, but got 'tanh'");
  refused([](auto& o) { o.norm = "rms"; },
          "TokenNorm: expected kind in {layer, batch, batch_masked}, but got 'rms'");
}

}  // namespace
}  // namespace kktorch
