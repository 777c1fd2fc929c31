// TorchScript modules against the C++ modules that they come from, after saving and loading.
#include <gtest/gtest.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/torch.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "models/torchscript.h"

namespace kktorch {
namespace {

using c10::IValue;
using torch::Tensor;

template <typename ModuleImpl>
torch::jit::Module round_trip(const ModuleImpl& module) {
  std::stringstream file;
  torch::jit::setGraphExecutorOptimize(false);  // the checks run each graph once
  to_torchscript(module).save(file);
  return torch::jit::load(file);
}

/// Random parameters and buffers; evaluation mode.
template <typename Module>
Module randomised(Module module) {
  torch::manual_seed(11);
  torch::NoGradGuard no_grad;
  for (auto& parameter : module->parameters()) parameter.normal_(0, 0.3);
  for (auto& buffer : module->buffers()) {
    if (buffer.is_floating_point()) buffer.uniform_(0.5, 1.5);
  }
  module->eval();
  return module;
}

void expect_close(const Tensor& actual, const Tensor& expected) {
  ASSERT_EQ(actual.sizes(), expected.sizes());
  ASSERT_TRUE(torch::allclose(actual, expected, /*rtol=*/1e-6, /*atol=*/1e-6))
      << "largest difference " << (actual - expected).abs().max().item<double>();
}

IValue optional(const Tensor& t) { return t.defined() ? IValue(t) : IValue(); }

Tensor last_step_padded(int64_t batch, int64_t length) {
  auto padding = torch::zeros({batch, length}, torch::kBool);
  padding.index_put_({0, length - 1}, true);
  return padding;
}

void expect_same_attention(const AttentionBNSHOptions& options) {
  auto layer = randomised(AttentionBNSH(options));
  auto script = round_trip(*layer);
  const auto kdim = options.kdim.value_or(options.embed_dim);
  const auto x = torch::randn({3, 3, options.embed_dim}), memory = torch::randn({3, 3, kdim});
  const bool self_attention = kdim == options.embed_dim;
  const auto forbidden = torch::ones({3, 3}, torch::kBool).triu(2);
  const auto per_head = torch::randn({3 * options.num_heads, 3, 3});
  for (const auto& key : self_attention ? std::vector{x, memory} : std::vector{memory}) {
    for (const auto& padding : {Tensor(), last_step_padded(3, 3)}) {
      for (const auto& mask : {Tensor(), forbidden, per_head}) {
        for (const bool is_causal : {false, true}) {
          for (const bool average : {false, true}) {
            const auto [out, weights] = layer(x, key, key, padding, true, mask, average, is_causal);
            const auto result = script
                                    .forward({x, key, key, optional(padding), true, optional(mask),
                                              average, is_causal})
                                    .toTuple();
            expect_close(result->elements()[0].toTensor(), out);
            expect_close(result->elements()[1].toTensor(), weights);
          }
        }
      }
    }
    const auto unbatched = script.forward({x[0], key[0], key[0]}).toTuple();
    expect_close(unbatched->elements()[0].toTensor(), std::get<0>(layer(x[0], key[0], key[0])));
    EXPECT_TRUE(unbatched->elements()[1].isNone());
  }
}

TEST(TorchScript, AttentionBNSH) {
  for (const auto* variant : {"softmax", "bn"}) {
    const AttentionBNSHOptions base{
        .embed_dim = 12, .num_heads = 4, .variant = variant, .beta_init = 0.7};
    expect_same_attention(base);
    auto grouped = base;
    grouped.num_kv_heads = 2, grouped.value_head_dim = 5, grouped.batch_first = true;
    grouped.beta_mode = "per_head", grouped.use_std = false;
    expect_same_attention(grouped);
    auto bare = base;
    bare.bias = false, bare.kdim = 5, bare.vdim = 5, bare.beta_mode = "scalar";
    expect_same_attention(bare);
    auto unmasked = base;
    unmasked.stats_mask = false, unmasked.bias = false;
    expect_same_attention(unmasked);
  }
}

TEST(TorchScript, EncoderLayer) {
  for (const auto* norm : {"layer", "batch", "batch_masked"}) {
    for (const bool norm_first : {false, true}) {
      auto layer = randomised(
          EncoderLayer(EncoderLayerOptions{.attention = {.embed_dim = 12, .num_heads = 4},
                                           .ffn = 16,
                                           .norm = norm,
                                           .norm_first = norm_first,
                                           .activation = norm_first ? "relu" : "gelu"}));
      auto script = round_trip(*layer);
      const auto x = torch::randn({2, 5, 12});
      const auto padding = last_step_padded(2, 5);
      expect_close(script.forward({x}).toTensor(), layer(x));
      expect_close(script.forward({x, padding, IValue(), true}).toTensor(),
                   layer(x, padding, Tensor(), true));
    }
  }
}

TimeSeriesClassifierOptions tiny(const std::string& attention, bool ragged_masks = true) {
  return {.channels = 2,
          .classes = 3,
          .max_length = 6,
          .encoder = {.width = 8,
                      .heads = 2,
                      .ffn = 10,
                      .layers = 2,
                      .attention = attention,
                      .beta_mode = "per_head"},
          .ragged_masks = ragged_masks};
}

TEST(TorchScript, TimeSeriesClassifier) {
  for (const auto* attention : {"softmax", "bn"}) {
    for (const bool ragged_masks : {true, false}) {
      auto model = randomised(TimeSeriesClassifier(tiny(attention, ragged_masks)));
      auto script = round_trip(*model);
      for (const int64_t length : {6, 4, 1}) {
        const auto x = torch::randn({3, length, 2});
        const auto padding = last_step_padded(3, length);
        expect_close(script.forward({x}).toTensor(), model(x));
        expect_close(script.forward({x, padding}).toTensor(), model(x, padding));
      }
    }
  }
}

TokenClassifierOptions tiny_tokens(const std::string& attention) {
  return {.vocabulary = 7,
          .classes = 3,
          .max_length = 6,
          .head_width = 5,
          .encoder = tiny(attention).encoder};
}

SmallViTOptions tiny_images(const std::string& attention) {
  auto encoder = tiny(attention).encoder;
  encoder.norm = "layer", encoder.norm_first = true;
  return {.image_height = 6,
          .image_width = 4,
          .image_channels = 3,
          .patch = 2,
          .classes = 5,
          .encoder = encoder};
}

TEST(TorchScript, TokenClassifier) {
  for (const auto* attention : {"softmax", "bnsh"}) {
    auto model = randomised(TokenClassifier(tiny_tokens(attention)));
    auto script = round_trip(*model);
    for (const int64_t length : {6, 4, 2}) {
      const auto ids = torch::randint(7, {3, length});
      const auto padding = last_step_padded(3, length);
      expect_close(script.forward({ids}).toTensor(), model(ids));
      expect_close(script.forward({ids.masked_fill(padding, -9), padding}).toTensor(),
                   model(ids, padding));
    }
  }
}

TEST(TorchScript, SmallViT) {
  for (const auto* attention : {"softmax", "bnsh"}) {
    auto options = tiny_images(attention);
    options.encoder.conv = "2d";
    auto model = randomised(SmallViT(options));
    const auto images = torch::randn({3, 3, 6, 4});
    expect_close(round_trip(*model).forward({images}).toTensor(), model(images));
  }
}

TEST(TorchScript, HasTheStateOfTheModuleAndEvaluationSemantics) {
  auto model = randomised(TimeSeriesClassifier(tiny("bn")));
  auto script = round_trip(*model);
  std::vector<std::string> names, expected;
  for (const auto& entry : script.named_parameters()) names.push_back(entry.name);
  for (const auto& entry : script.named_buffers()) names.push_back(entry.name);
  for (const auto& entry : model->named_parameters()) expected.push_back(entry.key());
  for (const auto& entry : model->named_buffers()) expected.push_back(entry.key());
  std::sort(names.begin(), names.end());
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(names, expected);

  const auto x = torch::randn({3, 6, 2});
  const auto logits = model(x);
  model->train();
  script.train();
  expect_close(script.forward({x}).toTensor(), logits);
  expect_close(round_trip(*model).forward({x}).toTensor(), logits);
}

void expect_refused(torch::jit::Module& script, std::vector<IValue> inputs,
                    const std::string& message) {
  try {
    script.forward(std::move(inputs));
    FAIL() << "no error; expected: " << message;
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
  }
}

TEST(TorchScript, RefusesWhatTheModuleRefuses) {
  auto series = round_trip(*TimeSeriesClassifier(tiny("softmax")));
  expect_refused(series, {torch::zeros({1, 7, 2})}, "expected x [B, L <= 6, C], but got [1, 7, 2]");

  auto tokens = round_trip(*TokenClassifier(tiny_tokens("softmax")));
  const auto ids = torch::zeros({2, 3}, torch::kLong);
  expect_refused(tokens, {torch::zeros({1, 7}, torch::kLong)},
                 "expected ids [B, 1 <= L <= 6], but got [1, 7]");
  expect_refused(tokens, {ids - 1}, "expected ids in [0, 7), but got -1 to -1");
  expect_refused(tokens, {ids, torch::ones({2, 3}, torch::kBool)},
                 "expected a valid token in every sequence");

  auto images = round_trip(*SmallViT(tiny_images("softmax")));
  expect_refused(images, {torch::zeros({1, 3, 4, 6})},
                 "expected images [B, C, 6, 4], but got [1, 3, 4, 6]");

  auto attention =
      round_trip(*AttentionBNSH(AttentionBNSHOptions{.embed_dim = 4, .variant = "softmax"}));
  const auto query = torch::zeros({2, 1, 4}), key = torch::zeros({3, 1, 4});
  expect_refused(attention, {query, key, key, IValue(), false, IValue(), true, true},
                 "as many queries as keys with is_causal");
}

// Not a check by itself: tests/python/test_nn.py runs it and compares its Python modules with the
// files.
void write_for_python(const torch::jit::Module& model, const std::string& name,
                      const std::vector<Tensor>& inputs, const Tensor& logits) {
  auto script = model;
  script.register_attribute("example_inputs", c10::ListType::ofTensors(), inputs);
  script.register_attribute("example_logits", c10::TensorType::get(), logits);
  script.save(std::filesystem::path(std::getenv("KKTORCH_TEST_ARTIFACTS")) / (name + ".ts"));
}

TEST(TorchScript, WritesModelsForPython) {
  if (std::getenv("KKTORCH_TEST_ARTIFACTS") == nullptr)
    GTEST_SKIP() << "KKTORCH_TEST_ARTIFACTS names no folder";
  const torch::NoGradGuard no_grad;
  const auto padding = last_step_padded(3, 5);
  for (const std::string attention : {"softmax", "bn", "bnsh"}) {
    torch::manual_seed(0);
    TimeSeriesClassifier series(tiny(attention));
    series->eval();
    const auto x = torch::randn({3, 5, 2});
    write_for_python(to_torchscript(*series), "TimeSeriesClassifier-" + attention, {x, padding},
                     series(x, padding));

    torch::manual_seed(0);
    TokenClassifier tokens(tiny_tokens(attention));
    tokens->eval();
    const auto ids = torch::randint(7, {3, 5});
    write_for_python(to_torchscript(*tokens), "TokenClassifier-" + attention, {ids, padding},
                     tokens(ids, padding));

    torch::manual_seed(0);
    SmallViT vision(tiny_images(attention));
    vision->eval();
    const auto images = torch::randn({3, 3, 6, 4});
    write_for_python(to_torchscript(*vision), "SmallViT-" + attention, {images}, vision(images));
  }
}

}  // namespace
}  // namespace kktorch
