// AttentionBNSH of every variant against a loop over heads, queries and windows; its TorchScript
// form; decoding against the causal forward.
#include <gtest/gtest.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/torch.h>

#include <cstdlib>
#include <filesystem>
#include <limits>
#include <sstream>

#include "models/torchscript.h"

namespace kktorch {
namespace {

using c10::IValue;
using torch::Tensor;

constexpr int64_t kWidth = 16, kHeads = 4;
const std::vector<const char*> kDecoding{"softmax", "bn", "sh", "bnsh"};
const std::vector<const char*> kLinear{"linear", "linear_bn", "linear_sh", "linear_bnsh"};

void expect_close(const Tensor& actual, const Tensor& expected, double tolerance = 1e-10) {
  ASSERT_EQ(actual.sizes(), expected.sizes());
  ASSERT_TRUE(torch::allclose(actual, expected, /*rtol=*/0, tolerance))
      << "largest difference " << (actual - expected).abs().max().item<double>();
}

template <typename Call>
void expect_error(const Call& call, const std::string& message) {
  try {
    call();
    FAIL() << "no error; expected: " << message;
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what_without_backtrace()).find(message), std::string::npos)
        << error.what_without_backtrace();
  }
}

AttentionBNSHOptions base(const std::string& variant) {
  // eps: with one key in the statistics of linear attention, exp(q / sqrt(1e-5)) is 0.
  return {.embed_dim = kWidth,
          .num_heads = kHeads,
          .batch_first = true,
          .variant = variant,
          .beta_init = 0.7,
          .eps = 0.1};
}

template <typename Module>
Module randomised(Module module) {
  torch::manual_seed(5);
  module->to(torch::kDouble);
  torch::NoGradGuard no_grad;
  for (auto& parameter : module->parameters()) parameter.normal_(0, 0.4);
  module->eval();
  return module;
}

AttentionBNSH make(const AttentionBNSHOptions& options) {
  return randomised(AttentionBNSH(options));
}

Tensor random(at::IntArrayRef shape) { return torch::randn(shape, torch::kDouble); }

/// [B, L], True beyond each length.
Tensor padding_mask(const std::vector<int64_t>& lengths, int64_t longest) {
  return torch::arange(longest).unsqueeze(0) >= torch::tensor(lengths).unsqueeze(1);
}

class EachLayer : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(AttentionLayer, EachLayer,
                         testing::Values("softmax", "bn", "sh", "bnsh", "linear", "linear_bn",
                                         "linear_sh", "linear_bnsh"),
                         [](const auto& info) { return std::string(info.param); });

class EachDecoder : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(AttentionLayer, EachDecoder, testing::ValuesIn(kDecoding),
                         [](const auto& info) { return std::string(info.param); });

// ---- the formula, not causal ----

/// Means of the windows of x [N, width] and numbers of tokens [windows]; the first `valid` tokens
/// count.
std::pair<Tensor, Tensor> windows_of(const Tensor& x, int64_t scale, int64_t valid,
                                     const AttentionBNSHOptions& o) {
  std::vector<Tensor> means;
  std::vector<double> counts;
  for (int64_t begin = 0; begin < valid;) {
    const auto end = begin < o.num_special ? begin + 1 : begin + scale;
    if (o.tail == "drop" && end > x.size(0)) break;
    means.push_back(x.slice(0, begin, std::min(end, valid)).mean(0));
    counts.push_back(o.count_weighting ? std::min(end, valid) - begin : 1);
    begin = end;
  }
  return {torch::stack(means), torch::tensor(counts, torch::kDouble)};
}

/// One head: q [L, D], k [N, D], v [N, Dv] to [L, Dv].
Tensor one_head(const Tensor& q, const Tensor& k, const Tensor& v, double beta, int64_t scale,
                int64_t valid, const AttentionBNSHOptions& o) {
  const auto [keys, n] = windows_of(k, scale, valid, o);
  const auto values = windows_of(v, scale, valid, o).first;
  auto q_hat = q, k_hat = keys;
  if (o.normalises()) {
    const auto share = (n / n.sum()).unsqueeze(1);
    const auto mean = (share * keys).sum(0), variance = (share * (keys - mean).square()).sum(0);
    const auto r = o.use_std ? (variance + o.eps).rsqrt() : torch::ones_like(mean);
    q_hat = (q - beta * mean) * r, k_hat = (keys - beta * mean) * r;
  }
  if (o.is_linear()) {
    const auto phi = [](const Tensor& x) { return torch::elu(x) + 1; };
    const auto weights = torch::matmul(phi(q_hat), phi(k_hat).t()) * n;
    return torch::matmul(weights / weights.sum(1, true), values);
  }
  const auto logits = torch::matmul(q_hat, k_hat.t()) / std::sqrt(q.size(1)) + n.log();
  return torch::matmul(logits.softmax(1), values);
}

Tensor expected_output(const AttentionBNSH& layer, const Tensor& query, const Tensor& memory,
                       const std::vector<int64_t>& valid) {
  const auto& o = layer->options;
  const auto shared = layer->queries_per_key();
  std::vector<Tensor> samples;
  for (int64_t b = 0; b < query.size(0); ++b) {
    std::array<Tensor, 3> parts;
    for (size_t i = 0; i < 3; ++i) {
      const auto [weight, bias] = layer->projection(i);
      parts[i] = torch::matmul((i == 0 ? query : memory)[b], weight.t()) + bias;
    }
    std::vector<Tensor> heads;
    for (int64_t h = 0; h < kHeads; ++h) {
      const auto head = [&](size_t i, int64_t index, int64_t width) {
        return parts[i].slice(1, index * width, (index + 1) * width);
      };
      const auto beta = layer->beta.defined()
                            ? layer->beta[o.is_linear() ? h / shared : h].item<double>()
                            : o.beta_init;
      heads.push_back(one_head(head(0, h, layer->head_dim()),
                               head(1, h / shared, layer->head_dim()),
                               head(2, h / shared, layer->value_head_dim()), beta,
                               layer->scales()[h / shared], valid[b], o));
    }
    samples.push_back(torch::cat(heads, 1));
  }
  torch::nn::Linear out_proj = layer->out_proj;
  return out_proj(torch::stack(samples));
}

std::vector<AttentionBNSHOptions> option_grid(const std::string& variant) {
  const auto plain = base(variant);
  auto grouped = plain, interleaved = plain, dropping = plain;
  grouped.num_kv_heads = 2, grouped.value_head_dim = 3, grouped.num_special = 2;
  grouped.beta_mode = "per_head";
  interleaved.scales = {3, 1, 3, 2}, interleaved.count_weighting = true;
  dropping.scales = {2}, dropping.tail = "drop", dropping.num_special = 1, dropping.use_std = false;
  return {plain, grouped, interleaved, dropping};
}

TEST_P(EachLayer, IsTheFormula) {
  for (const auto& options : option_grid(GetParam())) {
    auto layer = make(options);
    const auto query = random({2, 3, kWidth}), memory = random({2, 8, kWidth});
    for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{8, 8}, {8, 5}}) {
      const auto padding = padding_mask(lengths, 8);
      const auto unseen =
          memory.masked_fill(padding.unsqueeze(-1), std::numeric_limits<double>::quiet_NaN());
      const auto expected = expected_output(layer, query, memory, lengths);
      expect_close(std::get<0>(layer(query, unseen, unseen, padding)), expected);
      // With weights, tokens are projected before they are pooled.
      const auto [out, weights] = layer->forward(query, unseen, unseen, padding, true);
      expect_close(out, expected);
      expect_close(weights.sum(-1), torch::ones({2, 3}, torch::kDouble));
    }
    expect_close(std::get<0>(layer(memory, memory, memory)),
                 expected_output(layer, memory, memory, {8, 8}));
  }
}

TEST(AttentionLayer, DefaultScales) {
  EXPECT_EQ(default_scales(1), (std::vector<int64_t>{1}));
  EXPECT_EQ(default_scales(2), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(default_scales(4), (std::vector<int64_t>{1, 1, 2, 2}));
  EXPECT_EQ(default_scales(8), (std::vector<int64_t>{1, 1, 2, 2, 4, 4, 8, 8}));
}

TEST(AttentionLayer, WindowsOfOneTokenAreSoftmaxAttention) {
  auto options = base("sh");
  options.scales = {1};
  auto layer = make(options), softmax = make(base("softmax"));
  const auto x = random({2, 6, kWidth});
  const auto padding = padding_mask({6, 4}, 6);
  for (const bool causal : {false, true}) {
    expect_close(std::get<0>(layer(x, x, x, padding, false, Tensor(), true, causal)),
                 std::get<0>(softmax(x, x, x, padding, false, Tensor(), true, causal)));
  }
}

TEST(AttentionLayer, PoolingLessIsLessWorkButTheSameFunction) {
  // A mask that forbids nothing keeps the layer from pooling its inputs.
  for (const auto& options : option_grid("bnsh")) {
    auto layer = make(options);
    const auto x = random({2, 7, kWidth});
    const auto nothing = torch::zeros({7, 7}, torch::kBool);
    expect_close(std::get<0>(layer(x, x, x)),
                 std::get<0>(layer(x, x, x, Tensor(), false, nothing)));
  }
}

TEST_P(EachLayer, ANewConvolutionChangesNothing) {
  const auto x = random({2, 6, kWidth});
  for (const auto* kind : {"1d", "2d"}) {
    auto options = base(GetParam());
    torch::manual_seed(1);
    AttentionBNSH plain(options);
    options.conv = kind, options.conv_columns = 3;
    torch::manual_seed(1);
    AttentionBNSH layer(options);
    plain->to(torch::kDouble), layer->to(torch::kDouble);
    EXPECT_EQ(layer->parameters().size(), plain->parameters().size() + 2);
    expect_close(std::get<0>(layer(x, x, x)), std::get<0>(plain(x, x, x)));
    if (options.conv == "1d" && !options.pools()) {
      expect_close(std::get<0>(layer(x, x, x, Tensor(), false, Tensor(), true, true)),
                   std::get<0>(plain(x, x, x, Tensor(), false, Tensor(), true, true)));
    }
  }
}

TEST(TokenConv, IsAWeightedSumOfNeighbours) {
  const auto x = random({2, 3, 8, 4});
  const auto padding = padding_mask({8, 6}, 8);
  const auto at = [&](int64_t t) {  // token t after the special one, or zeros
    const auto valid = padding.logical_not().unsqueeze(1).unsqueeze(-1);
    const auto tokens = (x * valid).slice(2, 1);
    return t >= 0 && t < 7 ? tokens.select(2, t) : torch::zeros_like(tokens.select(2, 0));
  };
  auto conv = randomised(TokenConv(12, "1d", 0, 1));
  const auto w = conv->weight.view({3, 4, 3});
  const auto plain = conv(x, padding), causal = conv(x, padding, true);
  expect_close(plain.select(2, 0), x.select(2, 0));
  for (int64_t t = 0; t < 7; ++t) {
    const auto both = w.select(2, 0) * at(t - 1) + w.select(2, 1) * at(t);
    expect_close(plain.select(2, t + 1), both + w.select(2, 2) * at(t + 1));
    expect_close(causal.select(2, t + 1), both + w.select(2, 2) * at(t - 2));
  }
}

TEST(TokenConv, SeesTheGrid) {
  auto conv = randomised(TokenConv(2, "2d", 3, 0));
  auto x = torch::zeros({1, 1, 12, 2}, torch::kDouble);
  x.select(2, 4).fill_(1);  // row 1, column 1 of 4 x 3
  const auto y = conv(x)[0][0].view({4, 3, 2});
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t j = 0; j < 3; ++j) {
      expect_close(y[i][j], conv->weight.select(1, 0).select(1, 2 - i).select(1, 2 - j));
    }
  }
  EXPECT_EQ(y[3].count_nonzero().item<int64_t>(), 0);
}

TEST_P(EachLayer, TrainsEveryParameter) {
  auto options = base(GetParam());
  options.beta_mode = "per_head", options.conv = "1d";
  auto layer = make(options);
  layer->train();
  const auto x = random({2, 6, kWidth});
  std::get<0>(layer(x, x, x, padding_mask({6, 4}, 6))).square().sum().backward();
  for (const auto& entry : layer->named_parameters()) {
    ASSERT_TRUE(entry.value().grad().defined()) << entry.key();
    EXPECT_TRUE(entry.value().grad().isfinite().all().item<bool>()) << entry.key();
    EXPECT_GT(entry.value().grad().count_nonzero().item<int64_t>(), 0) << entry.key();
  }
}

// ---- decoding ----

std::vector<AttentionBNSHOptions> decode_grid(const std::string& variant) {
  const auto plain = base(variant);
  auto grouped = plain, counted = plain, special = plain;
  grouped.num_kv_heads = 2, grouped.value_head_dim = 3, grouped.scales = {1, 3};
  grouped.num_special = 2;
  counted.scales = {3, 1, 4, 2}, counted.count_weighting = true, counted.beta_mode = "per_head";
  special.scales = {2}, special.num_special = 3, special.use_std = false;
  return {plain, grouped, counted, special};
}

Tensor causal(AttentionBNSH layer, const Tensor& x) {
  return std::get<0>(layer(x, x, x, Tensor(), false, Tensor(), true, true));
}

TEST_P(EachDecoder, DecodingIsTheCausalForward) {
  for (const auto& options : decode_grid(GetParam())) {
    for (const auto dtype : {torch::kDouble, torch::kFloat}) {
      auto layer = make(options);
      layer->to(dtype);
      const auto x = random({2, 11, kWidth}).to(dtype);
      for (const int64_t chunk : {1, 3, 11}) {
        auto cache = layer->make_cache(2, 11);
        std::vector<Tensor> parts;
        for (const auto& part : x.split(chunk, 1)) parts.push_back(layer->decode(part, cache));
        expect_close(torch::cat(parts, 1), causal(layer, x),
                     dtype == torch::kDouble ? 1e-10 : 2e-5);
        EXPECT_EQ(cache.lengths(), (std::vector<int64_t>{11, 11}));
        EXPECT_TRUE(cache.length.eq(11).all().item<bool>());
      }
    }
  }
}

TEST_P(EachDecoder, SequencesOfDifferentLengthsAndReorderedBeams) {
  for (const auto& options : decode_grid(GetParam())) {
    auto layer = make(options);
    const auto x = random({3, 9, kWidth});
    const std::vector<int64_t> valid{5, 3, 4};
    auto cache = layer->make_cache(3, 9);
    const auto first = layer->decode(x.slice(1, 0, 5), cache, valid);
    const std::vector<int64_t> source{2, 0, 0, 1};
    cache.reorder(torch::tensor(source));
    EXPECT_EQ(cache.lengths(), (std::vector<int64_t>{4, 5, 5, 3}));
    const auto more = random({4, 2, kWidth});
    const auto second = layer->decode(more, cache);
    for (int64_t b = 0; b < 4; ++b) {
      const auto n = valid[source[b]];
      const auto whole = torch::cat({x[source[b]].slice(0, 0, n), more[b]}).unsqueeze(0);
      const auto expected = causal(layer, whole)[0];
      expect_close(first[source[b]].slice(0, 0, n), expected.slice(0, 0, n));
      expect_close(second[b], expected.slice(0, n));
    }
  }
}

TEST(AttentionLayer, DecodingRefuses) {
  auto layer = make(base("sh"));
  auto cache = layer->make_cache(2, 4);
  layer->decode(random({2, 3, kWidth}), cache, {3, 1});
  expect_error(
      [&] {
        layer->decode(random({2, 2, kWidth}), cache);
      },
      "KVCache: expected capacity >= 5, but got 4");
  EXPECT_EQ(cache.lengths(), (std::vector<int64_t>{3, 1}));
  expect_error(
      [&] {
        layer->decode(random({2, 1, kWidth}), cache, {1, 2});
      },
      "AttentionBNSH: expected 2 numbers of valid tokens in 0 ... 1, but got [1, 2]");
  expect_error(
      [&] {
        layer->decode(random({3, 1, kWidth}), cache);
      },
      "a batch of 2 as the cache, and one token or more, but got [3, 1, 16]");
  expect_error(
      [&] {
        cache.reorder(torch::tensor({0, 2}));
      },
      "KVCache: expected index in [0, 2), but got 2");
  expect_error([&] { cache.reorder(torch::zeros({2})); }, "KVCache: expected index int64");
  expect_error([&] { layer->make_cache(0, 1); }, "KVCache: expected batch >= 1, but got 0");
  expect_error([&] { make(base("linear_bn"))->make_cache(1, 1); },
               "expected variant in {softmax, bn, sh, bnsh} to decode, but got 'linear_bn'");
  auto convolved = base("bn");
  convolved.conv = "1d";
  expect_error([&] { make(convolved)->make_cache(1, 1); },
               "AttentionBNSH: expected conv 'none' to decode, but got '1d'");
}

// ---- TorchScript ----

torch::jit::Module round_trip(const AttentionBNSHImpl& layer) {
  std::stringstream file;
  torch::jit::setGraphExecutorOptimize(false);  // the checks run each graph once
  to_torchscript(layer).save(file);
  return torch::jit::load(file);
}

void expect_same_script(const AttentionBNSHOptions& options) {
  auto layer = make(options);
  auto script = round_trip(*layer);
  const auto kdim = options.kdim.value_or(kWidth);
  const auto x = random({2, 7, kWidth}), memory = random({2, 7, kdim});
  const auto padding = padding_mask({7, 4}, 7),
             forbidden = torch::ones({7, 7}, torch::kBool).triu(3);
  const bool causal = options.conv != "2d" && !(options.is_linear() && options.pools());
  for (const auto& key : kdim == kWidth ? std::vector{x, memory} : std::vector{memory}) {
    for (const auto& mask :
         options.is_linear() ? std::vector{Tensor()} : std::vector{Tensor(), forbidden}) {
      for (const bool is_causal : causal ? std::vector{false, true} : std::vector{false}) {
        for (const bool need_weights : {false, true}) {
          const auto [out, weights] =
              layer(x, key, key, padding, need_weights, mask, false, is_causal);
          const auto result =
              script
                  .forward({x, key, key, padding, need_weights,
                            mask.defined() ? IValue(mask) : IValue(), false, is_causal})
                  .toTuple();
          expect_close(result->elements()[0].toTensor(), out);
          ASSERT_EQ(result->elements()[1].isNone(), !need_weights);
          if (need_weights) expect_close(result->elements()[1].toTensor(), weights);
        }
      }
    }
    const auto unbatched = script.forward({x[0], key[0], key[0]}).toTuple();
    expect_close(unbatched->elements()[0].toTensor(), std::get<0>(layer(x[0], key[0], key[0])));
  }
}

TEST_P(EachLayer, ScriptIsTheLayer) {
  for (const auto& options : option_grid(GetParam())) expect_same_script(options);
  auto convolved = base(GetParam());
  convolved.conv = "1d", convolved.num_special = 1;
  expect_same_script(convolved);
  convolved.conv = "2d", convolved.conv_columns = 3;
  expect_same_script(convolved);
  auto bare = base(GetParam());
  bare.bias = false, bare.kdim = 5, bare.vdim = 5, bare.beta_mode = "scalar";
  expect_same_script(bare);
}

// Not a check by itself: tests/python/test_nn_attention.py runs it and compares its layers with the
// files.
TEST(AttentionLayer, WritesLayersForPython) {
  const char* folder = std::getenv("KKTORCH_TEST_ARTIFACTS");
  if (folder == nullptr) GTEST_SKIP() << "KKTORCH_TEST_ARTIFACTS names no folder";
  torch::NoGradGuard no_grad;
  const auto write = [&](const std::string& variant, const std::string& conv, bool decodes) {
    torch::manual_seed(0);
    AttentionBNSH layer(AttentionBNSHOptions{.embed_dim = kWidth,
                                             .num_heads = kHeads,
                                             .batch_first = true,
                                             .variant = variant,
                                             .beta_mode = "per_head",
                                             .conv = conv});
    layer->eval();
    auto script = to_torchscript(*layer);
    const auto x = torch::randn({2, 7, kWidth});
    const auto padding = padding_mask({7, 4}, 7);
    const auto add = [&](const char* name, const Tensor& t) {
      script.register_attribute(name, c10::TensorType::get(), t);
    };
    add("example_x", x);
    add("example_padding", padding);
    add("example_out", std::get<0>(layer(x, x, x, padding)));
    if (decodes) {
      auto cache = layer->make_cache(2, 7);
      add("example_decoded", layer->decode(x, cache));
    }
    script.save((std::filesystem::path(folder) / (variant + ".ts")).string());
  };
  for (const auto* variant : kDecoding) write(variant, "none", true);
  for (const auto* variant : kLinear) write(variant, "1d", false);
}

// ---- errors ----

TEST(AttentionLayer, RefusesOptions) {
  const auto refused = [](auto change, const std::string& message) {
    auto options = base("sh");
    change(options);
    expect_error([&] { AttentionBNSH layer(options); }, "AttentionBNSH: expected " + message);
  };
  refused([](auto& o) { o.variant = "max"; },
          "variant in {softmax, bn, sh, bnsh, linear, linear_bn, linear_sh, linear_bnsh}, but got "
          "'max'");
  refused([](auto& o) { o.scales = {1, 2}; }, "1 or 4 scales, each >= 1, but got [1, 2]");
  refused([](auto& o) { o.scales = {0}; }, "1 or 4 scales, each >= 1, but got [0]");
  refused([](auto& o) { o.tail = "wrap"; }, "tail in {ceil, drop}, but got 'wrap'");
  refused([](auto& o) { o.num_special = -1; }, "num_special >= 0, but got -1");
  refused([](auto& o) { o.conv = "3d"; }, "conv in {none, 1d, 2d}, but got '3d'");
  refused([](auto& o) { o.conv = "2d"; }, "conv_columns >= 1 with conv '2d', but got 0");
  refused([](auto& o) { o.variant = "linear", o.dropout = 0.1; },
          "dropout 0 with variant 'linear', which has no attention probabilities, but got 0.1");
}

TEST(AttentionLayer, RefusesInputs) {
  const auto x = torch::zeros({2, 6, kWidth});
  const auto nothing = torch::zeros({6, 6}, torch::kBool);
  const auto call = [&](const AttentionBNSHOptions& options, const Tensor& mask, bool is_causal) {
    return [=] {
      AttentionBNSH layer(options);
      layer(x, x, x, Tensor(), false, mask, true, is_causal);
    };
  };
  expect_error(call(base("linear_bn"), nothing, false),
               "AttentionBNSH: expected no attn_mask with variant 'linear_bn', but got one");
  expect_error(call(base("linear_sh"), Tensor(), true),
               "AttentionBNSH: expected is_causal=false with variant 'linear_sh', but got true");
  auto grid = base("sh");
  grid.conv = "2d", grid.conv_columns = 3;
  expect_error(call(grid, Tensor(), true),
               "AttentionBNSH: expected is_causal=false with conv '2d', but got true");
  grid.num_special = 1;
  expect_error(call(grid, Tensor(), false),
               "AttentionBNSH: expected num_special=1 tokens and rows of conv_columns=3 with conv "
               "'2d', but got a length of 6");
}

}  // namespace
}  // namespace kktorch
