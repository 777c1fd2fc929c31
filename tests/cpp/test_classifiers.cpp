// The classifiers against loops over samples and against their formulas in torch::nn.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <sstream>

#include "models/small_vit.h"
#include "models/time_series_classifier.h"
#include "models/token_classifier.h"
#include "tests/cpp/model_testing.h"

namespace kktorch {
namespace {

using torch::Tensor;
using namespace testing_models;

class EachAttention : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Classifiers, EachAttention,
                         testing::Values("softmax", "bn", "bnsh", "linear_sh"),
                         [](const auto& info) { return std::string(info.param); });

EncoderOptions small_encoder(const std::string& attention) {
  return {.width = 8,
          .heads = 2,
          .ffn = 10,
          .layers = 2,
          .norm = "layer",
          .attention = attention,
          .beta_mode = "per_head"};
}

// ---- TimeSeriesClassifier ----

TimeSeriesClassifierOptions tiny(const std::string& attention) {
  return {.channels = 2,
          .classes = 3,
          .max_length = 6,
          .encoder = {.width = 8, .heads = 2, .ffn = 10, .layers = 2, .attention = attention}};
}

TEST_P(EachAttention, ClassifierTreatsAPaddedBatchAsTheLoopOverSeries) {
  auto model = randomised(TimeSeriesClassifier(tiny(GetParam())));
  model->standardise_with(torch::tensor({1.0, -2.0}), torch::tensor({0.5, 3.0}));
  const std::vector<int64_t> lengths{6, 1, 4};
  const auto padding = padding_mask(lengths, 6);
  const auto x = random({3, 6, 2}).masked_fill(padding.unsqueeze(-1), kNaN);
  const auto logits = model(x, padding);
  EXPECT_EQ(logits.sizes(), at::IntArrayRef({3, 3}));
  for (int64_t b = 0; b < 3; ++b) {
    expect_close(logits.slice(0, b, b + 1), model(x.slice(0, b, b + 1).slice(1, 0, lengths[b])));
  }
  // Longer padding than the batch needs changes nothing either.
  expect_close(model(x.slice(0, 1).slice(1, 0, 4), padding.slice(0, 1).slice(1, 0, 4)),
               logits.slice(0, 1));
}

TEST_P(EachAttention, ClassifierWithoutRaggedMasksSeesMaxLengthSteps) {
  auto options = tiny(GetParam());
  options.ragged_masks = false;
  auto model = randomised(TimeSeriesClassifier(options));
  auto masked = randomised(TimeSeriesClassifier(tiny(GetParam())));
  const auto x = random({3, 4, 2});
  const auto padded = torch::constant_pad_nd(x, {0, 0, 0, 2}, kNaN);
  expect_close(model(padded, padding_mask({4, 4, 4}, 6)), model(x));
  EXPECT_FALSE(torch::allclose(masked(x), model(x)));
  const auto whole = random({3, 6, 2});  // without padding there is nothing to mask
  expect_close(masked(whole), model(whole));
}

TEST_P(EachAttention, ClassifierTrainsEveryParameter) {
  for (const auto* norm : {"layer", "batch", "batch_masked"}) {
    auto options = tiny(GetParam());
    options.encoder.norm = norm, options.encoder.beta_mode = "per_head";
    TimeSeriesClassifier model(options);
    const auto padding = padding_mask({6, 2, 4}, 6);
    model(torch::randn({3, 6, 2}).masked_fill(padding.unsqueeze(-1), kNaN), padding)
        .square()
        .sum()
        .backward();
    expect_gradients(*model);
    for (const auto& entry : model->named_buffers()) {
      EXPECT_TRUE(entry.value().isfinite().all().item<bool>()) << entry.key();
    }
  }
}

TEST(TimeSeriesClassifier, TakesRawSeries) {
  auto model = randomised(TimeSeriesClassifier(tiny("bn")));
  const auto x = random({2, 6, 2});
  const auto expected = model(x);
  const auto mean = torch::tensor({3.0, -1.0}, torch::kDouble),
             std = torch::tensor({2.0, 0.0}, torch::kDouble);
  model->standardise_with(mean, std);  // the second channel is centred only
  expect_close(model(x * torch::tensor({2.0, 1.0}, torch::kDouble) + mean), expected);
  // Buffers are part of the saved model.
  EXPECT_TRUE(model->named_buffers().contains("input_mean"));
  EXPECT_TRUE(model->named_buffers().contains("input_std"));
}

TEST(TimeSeriesClassifier, RefusesOptionsAndInputs) {
  auto options = tiny("bn");
  options.classes = 0;
  expect_error([&] { TimeSeriesClassifier model(options); },
               "TimeSeriesClassifier: expected classes >= 1, but got 0");
  options = tiny("bn");
  options.encoder.width = 0;
  expect_error([&] { TimeSeriesClassifier model(options); },
               "TimeSeriesClassifier: expected width >= 1, but got 0");
  options = tiny("bn");
  options.encoder.layers = 0;
  expect_error([&] { TimeSeriesClassifier model(options); },
               "Encoder: expected layers >= 1, but got 0");
  TimeSeriesClassifier model(tiny("bn"));
  const std::string expected = "TimeSeriesClassifier: expected ";
  expect_error(
      [&] {
        model(torch::zeros({1, 7, 2}));
      },
      expected + "x floating [B, L <= 6, 2], but got Float [1, 7, 2]");
  expect_error(
      [&] {
        model(torch::zeros({1, 6, 2}, torch::kLong));
      },
      expected + "x floating [B, L <= 6, 2], but got Long [1, 6, 2]");
  expect_error(
      [&] {
        model(torch::zeros({1, 6, 2}), torch::zeros({1, 5}, torch::kBool));
      },
      expected + "padding_mask bool [1, 6], but got Bool [1, 5]");
  expect_error([&] { model->standardise_with(torch::zeros({3}), torch::ones({3})); },
               expected + "mean and std of shape [2], but got [3] and [3]");
  expect_error(
      [&] {
        model->standardise_with(torch::zeros({2}), torch::tensor({1.0, -1.0}));
      },
      expected + "finite mean and std >= 0");
}

TEST(TimeSeriesClassifier, PrintsItsOptions) {
  std::ostringstream text;
  text << TimeSeriesClassifier(tiny("bn"));
  for (const auto* part :
       {"kktorch::TimeSeriesClassifier(channels=2, classes=3, max_length=6",
        "kktorch::Encoder(length=6, width=8, heads=2, ffn=10, layers=2, attention=bn, norm=batch)",
        "kktorch::EncoderLayer(ffn=10", "kktorch::AttentionBNSH(embed_dim=8, num_heads=2",
        "variant=bn, beta_mode=fixed, beta_init=1", "kktorch::TokenNorm(kind=batch, width=8)"}) {
    EXPECT_NE(text.str().find(part), std::string::npos) << part << " in\n" << text.str();
  }
}

// ---- TokenClassifier ----

TokenClassifierOptions tiny_tokens(const std::string& attention) {
  return {.vocabulary = 7,
          .classes = 3,
          .max_length = 6,
          .head_width = 5,
          .encoder = small_encoder(attention)};
}

TEST_P(EachAttention, TokenClassifierTreatsAPaddedBatchAsTheLoopOverSequences) {
  auto model = randomised(TokenClassifier(tiny_tokens(GetParam())));
  const std::vector<int64_t> lengths{6, 1, 4};
  const auto padding = padding_mask(lengths, 6);
  const auto ids = torch::randint(7, {3, 6}).masked_fill(padding, -99);  // padding is not looked up
  const auto logits = model(ids, padding);
  EXPECT_EQ(logits.sizes(), at::IntArrayRef({3, 3}));
  for (int64_t b = 0; b < 3; ++b) {
    const auto one = ids.slice(0, b, b + 1).slice(1, 0, lengths[b]);
    expect_close(logits.slice(0, b, b + 1), model(one));
    // The head on the mean of the encoder's tokens.
    const auto h = model->encoder(model->embedding(one));
    const auto hidden = torch::linear(h.sum(1) / static_cast<double>(lengths[b]),
                                      model->hidden->weight, model->hidden->bias);
    expect_close(model(one),
                 torch::linear(hidden.clamp_min(0), model->head->weight, model->head->bias));
  }
  EXPECT_EQ(model(torch::zeros({0, 4}, torch::kLong)).sizes(), at::IntArrayRef({0, 3}));
}

TEST_P(EachAttention, TokenClassifierTrainsEveryParameter) {
  for (const auto* norm : {"layer", "batch_masked"}) {
    auto options = tiny_tokens(GetParam());
    options.encoder.norm = norm;
    TokenClassifier model(options);
    torch::manual_seed(1);
    model(torch::randint(7, {4, 6}), padding_mask({6, 2, 4, 5}, 6)).square().sum().backward();
    expect_gradients(*model);
  }
}

TEST(TokenClassifier, RefusesOptions) {
  const auto refused = [](auto change, const std::string& message) {
    auto options = tiny_tokens("bn");
    change(options);
    expect_error([&] { TokenClassifier model(options); }, "TokenClassifier: expected " + message);
  };
  refused([](auto& o) { o.vocabulary = 0; }, "vocabulary >= 1, but got 0");
  refused([](auto& o) { o.classes = 0; }, "classes >= 1, but got 0");
  refused([](auto& o) { o.max_length = -1; }, "max_length >= 1, but got -1");
  refused([](auto& o) { o.head_width = 0; }, "head_width >= 1, but got 0");
  refused([](auto& o) { o.encoder.width = 0; }, "width >= 1, but got 0");
}

TEST(TokenClassifier, RefusesInputs) {
  TokenClassifier model(tiny_tokens("bn"));
  const auto refused = [&](const Tensor& ids, const Tensor& padding, const std::string& message) {
    expect_error([&] { model(ids, padding); }, "TokenClassifier: expected " + message);
  };
  const auto ids = torch::zeros({2, 3}, torch::kLong);
  refused(torch::zeros({1, 7}, torch::kLong), {},
          "ids int64 [B, 1 <= L <= 6], but got Long [1, 7]");
  refused(torch::zeros({1, 0}, torch::kLong), {},
          "ids int64 [B, 1 <= L <= 6], but got Long [1, 0]");
  refused(torch::zeros({2, 3}), {}, "ids int64 [B, 1 <= L <= 6], but got Float [2, 3]");
  refused(ids, torch::zeros({2, 3}), "padding_mask bool [2, 3], but got Float [2, 3]");
  refused(ids + 7, {}, "ids in [0, 7), but got 7 to 7");
  refused(torch::tensor({{3, -1}}), {}, "ids in [0, 7), but got -1 to 3");
  refused(ids, padding_mask({2, 0}, 3),
          "a valid token in every sequence, but got none in sequence 1");
}

// ---- SmallViT ----

SmallViTOptions tiny_images(const std::string& attention) {
  auto encoder = small_encoder(attention);
  encoder.norm_first = true;
  return {.image_height = 6,
          .image_width = 4,
          .image_channels = 3,
          .patch = 2,
          .classes = 5,
          .encoder = encoder};
}

TEST_P(EachAttention, SmallViTIsAStridedConvolutionBeforeTheEncoder) {
  auto model = randomised(SmallViT(tiny_images(GetParam())));
  const auto images = random({2, 3, 6, 4});
  const auto kernel = model->embedding->weight.view({8, 3, 2, 2});
  const auto patches = torch::conv2d(images, kernel, model->embedding->bias, /*stride=*/2);
  const auto first = model->class_token.repeat({2, 1}).unsqueeze(1);
  const auto h = model->encoder(torch::cat({first, patches.flatten(2).transpose(1, 2)}, 1));
  const auto normed = torch::layer_norm(h.index({torch::indexing::Slice(), 0}), {8},
                                        model->norm->weight, model->norm->bias);
  expect_close(model(images), torch::linear(normed, model->head->weight, model->head->bias));
  EXPECT_EQ(model->encoder->position.sizes(), at::IntArrayRef({7, 8}));
  EXPECT_EQ(model(images.slice(0, 0, 0)).sizes(), at::IntArrayRef({0, 5}));
}

TEST_P(EachAttention, SmallViTTrainsEveryParameter) {
  SmallViT model(tiny_images(GetParam()));
  model(torch::randn({4, 3, 6, 4})).square().sum().backward();
  expect_gradients(*model);
}

TEST(SmallViT, ItsAttentionKnowsTheClassTokenAndTheGrid) {
  auto options = tiny_images("bnsh");
  options.encoder.scales = {1, 3}, options.encoder.tail = "drop";
  options.encoder.count_weighting = true, options.encoder.conv = "2d";
  SmallViT model(options);
  for (const auto& layer : *model->encoder->layers) {
    const auto& o = layer->as<EncoderLayer>()->self_attn->options;
    EXPECT_EQ(o.num_special, 1);
    EXPECT_EQ(o.conv, "2d");
    EXPECT_EQ(o.conv_columns, 2);
    EXPECT_EQ(o.scales, std::vector<int64_t>({1, 3}));
    EXPECT_EQ(o.tail, "drop");
    EXPECT_TRUE(o.count_weighting);
  }
  model(torch::randn({4, 3, 6, 4})).square().sum().backward();
  // The last convolution of the queries is that of the patches', whose outputs nobody reads.
  for (const auto& entry : model->named_parameters()) {
    const bool trained = entry.value().grad().count_nonzero().item<int64_t>() > 0;
    EXPECT_EQ(trained, entry.key() != "encoder.layers.1.self_attn.conv_q.weight") << entry.key();
  }
}

TEST(SmallViT, TakesRawImages) {
  auto model = randomised(SmallViT(tiny_images("bn")));
  const auto images = random({2, 3, 6, 4});
  const auto expected = model(images);
  const auto mean = torch::tensor({3.0, -1.0, 0.0}, torch::kDouble),
             std = torch::tensor({2.0, 0.5, 0.0}, torch::kDouble);
  model->standardise_with(mean, std);  // the third channel is centred only
  const auto gain = torch::tensor({2.0, 0.5, 1.0}, torch::kDouble);
  expect_close(model(images * gain.view({3, 1, 1}) + mean.view({3, 1, 1})), expected);
  EXPECT_TRUE(model->named_buffers().contains("input_mean"));
  EXPECT_TRUE(model->named_buffers().contains("input_std"));
}

TEST(SmallViT, RefusesOptionsAndInputs) {
  const auto refused = [](auto change, const std::string& message) {
    auto options = tiny_images("bn");
    change(options);
    expect_error([&] { SmallViT model(options); }, "SmallViT: expected " + message);
  };
  refused([](auto& o) { o.image_height = 0; }, "image_height >= 1, but got 0");
  refused([](auto& o) { o.image_width = 0; }, "image_width >= 1, but got 0");
  refused([](auto& o) { o.image_channels = 0; }, "image_channels >= 1, but got 0");
  refused([](auto& o) { o.patch = 0; }, "patch >= 1, but got 0");
  refused([](auto& o) { o.patch = 4; },
          "image_height and image_width divisible by patch, but got 6, 4 and 4");
  refused([](auto& o) { o.classes = 0; }, "classes >= 1, but got 0");
  refused([](auto& o) { o.encoder.width = 0; }, "width >= 1, but got 0");
  SmallViT model(tiny_images("bn"));
  expect_error(
      [&] {
        model(torch::zeros({1, 3, 4, 6}));
      },
      "SmallViT: expected images floating [B, 3, 6, 4], but got Float [1, 3, 4, 6]");
  expect_error(
      [&] {
        model(torch::zeros({1, 3, 6, 4}, torch::kByte));
      },
      "SmallViT: expected images floating [B, 3, 6, 4], but got Byte [1, 3, 6, 4]");
}

TEST(Classifiers, PrintTheirOptions) {
  std::ostringstream text;
  text << TokenClassifier(tiny_tokens("bn")) << SmallViT(tiny_images("bn"));
  for (const auto* part :
       {"kktorch::TokenClassifier(vocabulary=7, classes=3, max_length=6, head_width=5)",
        "kktorch::SmallViT(image_height=6, image_width=4, image_channels=3, patch=2, classes=5)",
        "kktorch::Encoder(length=7, width=8"}) {
    EXPECT_NE(text.str().find(part), std::string::npos) << part << " in\n" << text.str();
  }
}

}  // namespace
}  // namespace kktorch
