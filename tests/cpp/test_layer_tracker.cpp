// The margin tracker on the heads of an attention layer.
#include <cmath>

#include "models/layer_tracker.h"
#include "tests/cpp/model_testing.h"

namespace kktorch {
namespace {

using namespace testing_models;  // NOLINT

AttentionBNSH softmax_layer(int64_t kv_heads) {
  return randomised(AttentionBNSH(AttentionBNSHOptions{.embed_dim = 8,
                                                       .num_heads = 2,
                                                       .num_kv_heads = kv_heads,
                                                       .batch_first = true,
                                                       .variant = "softmax"}));
}

TEST(LayerTracker, MarginsAndMultipliersAreThoseOfTheHeads) {
  for (const bool causal : {false, true}) {
    auto layer = softmax_layer(causal ? 1 : 2);
    LayerTracker tracker(layer);
    const auto x = random({3, 5, 8});
    const auto padding = padding_mask({5, 3, 5}, 5);
    tracker.forward(x, x, x, padding, {}, causal).square().sum().backward();
    const auto records = tracker.step(1.0);
    ASSERT_EQ(records.size(), 2U);

    auto hidden = padding.unsqueeze(1).expand({3, 5, 5});
    if (causal) hidden = hidden.logical_or(torch::ones({5, 5}, torch::kBool).triu(1));
    const auto heads = [&](size_t part) {
      const auto [weight, bias] = layer->projection(part);
      const auto all = torch::linear(x, weight, bias).unflatten(2, {-1, 4}).transpose(1, 2);
      return all.expand({3, 2, 5, 4});
    };
    auto logits = torch::matmul(heads(0), heads(1).transpose(2, 3)) / 2;
    logits = logits.masked_fill(hidden.unsqueeze(1), -INFINITY).detach().requires_grad_();
    const auto out = torch::matmul(logits.softmax(3), heads(2).detach()).transpose(1, 2);
    layer->out_proj->forward(out.flatten(2)).square().sum().backward();
    for (int64_t head = 0; head < 2; ++head) {
      const auto& r = records[static_cast<size_t>(head)];
      const auto L = logits.detach().select(1, head), g = logits.grad().select(1, head) / 2;
      const auto top = std::get<0>(L.topk(2, 2));
      expect_close(r.margin, 2 * (top.select(2, 0) - top.select(2, 1)).flatten(), 1e-12);
      const auto lam = g.scatter(2, L.argmax(2, true), 0).clamp_min(0);
      EXPECT_NEAR(r.mass, lam.sum().item<double>(), 1e-10 * r.mass);
      EXPECT_LE(r.lower, r.upper);
      EXPECT_EQ(r.loss, 1);
    }
  }
}

TEST(LayerTracker, SeesTheLastForwardPass) {
  auto layer = softmax_layer(2);
  int calls = 0;
  layer->observer = [&](const HeadRecord&) { ++calls; };
  const auto x = random({2, 4, 8});
  LayerTracker tracker(layer, {.nuclear = true});
  expect_error([&] { tracker.step(); }, "expected a forward pass before step, but got none");
  const torch::NoGradGuard no_grad;
  expect_close(tracker.forward(x, x, x), std::get<0>(layer->forward(x, x, x)));
  EXPECT_EQ(calls, 2);  // the observer that was there sees both
  const auto records = tracker.step();
  EXPECT_TRUE(std::isnan(records[0].upper));  // there was no gradient
  EXPECT_FALSE(std::isnan(records[1].lower_nuclear));
  const auto hidden = torch::ones({4, 4}, torch::kBool).triu(1);
  tracker.forward(x, x, x, {}, hidden);
  const auto masked = tracker.step();
  tracker.forward(x, x, x, {}, {}, /*is_causal=*/true);
  expect_close(masked[0].margin, tracker.step()[0].margin);
  tracker.forward(x, x, x, {}, torch::zeros({4, 4}, torch::kDouble));
  expect_error([&] { tracker.step(); }, "but got an additive attn_mask");
  tracker.forward(x, x, x, {}, torch::zeros({4, 4, 4}, torch::kBool));
  expect_error([&] { tracker.step(); }, "but got an attn_mask per head");
}

TEST(LayerTracker, OtherLogitsAreRefusedByName) {
  const auto refused = [](AttentionBNSHOptions options, const std::string& what) {
    options.embed_dim = 8;
    options.num_heads = 2;
    expect_error([&] { LayerTracker tracker{AttentionBNSH(options)}; },
                 "margin_tracker: expected bilinear logits, but got AttentionBNSH " + what);
  };
  refused({}, "of variant 'bn'");
  refused({.variant = "linear"}, "of variant 'linear'");
  refused({.variant = "softmax", .conv = "1d"}, "with a convolution of queries and keys");
  refused({.dropout = 0.1, .variant = "softmax"}, "with dropout 0.1 on its probabilities");
}

}  // namespace
}  // namespace kktorch
