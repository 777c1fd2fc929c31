// What an observer of an attention layer sees, and distances between heads against loops over
// samples, heads, queries and windows.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "tests/cpp/model_testing.h"
#include "train/experiments/primal_dual/head_distance.h"

namespace kktorch {
namespace {

using primal_dual::HeadDistance;
using testing_models::expect_close;
using testing_models::kNaN;
using testing_models::padding_mask;
using testing_models::random;
using testing_models::randomised;
using torch::Tensor;

constexpr int64_t kLength = 7;
const std::vector<int64_t> kLengths = {kLength, 4, 1};

class EachObserved : public testing::TestWithParam<const char*> {
 protected:
  AttentionBNSH layer(int64_t num_special = 0) const {
    const AttentionBNSHOptions options{.embed_dim = 12,
                                       .num_heads = 4,
                                       .batch_first = true,
                                       .variant = GetParam(),
                                       .num_special = num_special};
    return randomised(AttentionBNSH(options));
  }
};
INSTANTIATE_TEST_SUITE_P(HeadDistance, EachObserved,
                         testing::Values("softmax", "bn", "sh", "bnsh", "linear_bn"),
                         [](const auto& info) { return std::string(info.param); });

/// Self-attention to x and what the observer saw of it.
struct Observed {
  Observed(AttentionBNSH layer, const Tensor& x, const Tensor& padding, bool need_weights = false) {
    layer->observer = [this](const HeadRecord& seen) { record = seen, ++calls; };
    std::tie(output, weights) = layer(x, x, x, padding, need_weights);
    layer->observer = nullptr;
  }
  HeadRecord record;
  Tensor output, weights;
  int calls = 0;
};

TEST_P(EachObserved, ObserverSeesTheOutputsAndTheWeightsOfTheHeads) {
  auto attention = layer();
  const auto x = random({3, kLength, 12}), padding = padding_mask(kLengths, kLength);
  const auto unobserved = std::get<0>(attention(x, x, x, padding));
  const auto weights = std::get<1>(attention(x, x, x, padding, /*need_weights=*/true, Tensor(),
                                             /*average_attn_weights=*/false));
  for (const bool need_weights : {false, true}) {
    const Observed observed(attention, x, padding, need_weights);
    ASSERT_EQ(observed.calls, 1);
    const auto& record = observed.record;
    EXPECT_EQ(record.outputs.sizes(), (std::vector<int64_t>{3, 4, kLength, 3}));
    expect_close(attention->out_proj(record.outputs.transpose(1, 2).flatten(2)), unobserved);
    expect_close(observed.output, unobserved);
    expect_close(record.weights, weights);
    EXPECT_TRUE(torch::equal(record.key_padding, padding));
    EXPECT_EQ(observed.weights.defined(), need_weights);
  }
}

TEST_P(EachObserved, ObserverSeesTheBatchFirstInEveryLayout) {
  auto attention = layer();
  attention->options.batch_first = false;
  const auto x = random({kLength, 2, 12});
  const auto record = Observed(attention, x, {}).record;
  EXPECT_FALSE(record.key_padding.defined());
  for (int64_t b = 0; b < 2; ++b) {
    const auto single = Observed(attention, x.select(1, b), {}).record;
    expect_close(record.outputs[b], single.outputs[0]);
    expect_close(record.weights[b], single.weights[0]);
  }
}

// ---- distances

/// Length of a difference of rows, by a loop.
double distance(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.size(0); ++i)
    sum += std::pow(a[i].item<double>() - b[i].item<double>(), 2);
  return std::sqrt(sum);
}

/// The probabilities that query i of one head gives to the windows of the first `valid` tokens.
Tensor to_windows(const Tensor& weights, int64_t scale, int64_t valid, int64_t num_special) {
  std::vector<double> windows;
  for (int64_t begin = 0; begin < valid;) {
    const auto end = std::min(valid, begin < num_special ? begin + 1 : begin + scale);
    double sum = 0;
    for (int64_t j = begin; j < end; ++j) sum += weights[j].item<double>();
    windows.push_back(sum);
    begin = end;
  }
  return torch::tensor(windows, torch::kDouble);
}

struct Means {
  double outputs, relative, probabilities;
};

Means by_loops(const HeadRecord& record, const std::vector<int64_t>& scales,
               const std::vector<int64_t>& lengths, int64_t num_special) {
  double outputs = 0, norms = 0, maps = 0;
  int64_t pairs = 0, tokens = 0, map_pairs = 0;
  const auto heads = std::ssize(scales);
  for (size_t b = 0; b < lengths.size(); ++b) {
    const auto o = record.outputs[b], w = record.weights[b];
    const auto valid = lengths[b];
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < valid; ++i, ++tokens)
        norms += distance(o[h][i], torch::zeros_like(o[h][i]));
      for (int64_t g = h + 1; g < heads; ++g) {
        for (int64_t i = 0; i < valid; ++i, ++pairs) outputs += distance(o[h][i], o[g][i]);
        if (scales[h] != scales[g]) continue;
        double squares = 0;
        for (int64_t i = 0; i < valid; ++i)
          squares += std::pow(distance(to_windows(w[h][i], scales[h], valid, num_special),
                                       to_windows(w[g][i], scales[g], valid, num_special)),
                              2);
        maps += std::sqrt(squares / valid);
        ++map_pairs;
      }
    }
  }
  outputs /= pairs;
  return {outputs, outputs / (norms / tokens), maps / map_pairs};
}

TEST_P(EachObserved, DistancesAreThoseOfALoopOverValidTokens) {
  for (const int64_t num_special : {0, 1}) {
    auto attention = layer(num_special);
    const auto x = random({3, kLength, 12});
    for (const auto& lengths : {kLengths, std::vector<int64_t>(3, kLength)}) {
      const bool padded = lengths == kLengths;
      auto record =
          Observed(attention, x, padded ? padding_mask(lengths, kLength) : Tensor()).record;
      if (padded) {
        // What stands in padded queries must not count.
        const auto rows = record.key_padding.unsqueeze(1).unsqueeze(-1);
        record.outputs = record.outputs.masked_fill(rows, kNaN);
        record.weights = record.weights.masked_fill(rows, kNaN);
      }
      const auto expected = by_loops(record, attention->scales(), lengths, num_special);
      HeadDistance found(*attention);
      found.add(record);
      EXPECT_NEAR(found.outputs(), expected.outputs, 1e-12);
      EXPECT_NEAR(found.relative(), expected.relative, 1e-12);
      EXPECT_NEAR(found.probabilities().value(), expected.probabilities, 1e-12);
      EXPECT_GT(expected.probabilities, 1e-3) << "the heads differ";
    }
  }
}

TEST_P(EachObserved, BatchesAddUpToTheirTokens) {
  auto attention = layer();
  const auto x = random({3, kLength, 12}), padding = padding_mask(kLengths, kLength);
  HeadDistance whole(*attention), parts(*attention);
  whole.add(Observed(attention, x, padding).record);
  for (const auto& [begin, end] : {std::pair{0, 2}, {2, 3}})
    parts.add(Observed(attention, x.slice(0, begin, end), padding.slice(0, begin, end)).record);
  EXPECT_NEAR(parts.outputs(), whole.outputs(), 1e-12);
  EXPECT_NEAR(parts.relative(), whole.relative(), 1e-12);
  EXPECT_NEAR(parts.probabilities().value(), whole.probabilities().value(), 1e-12);
}

TEST(HeadDistance, OfTwoHeadsByHand) {
  const AttentionBNSH layer(AttentionBNSHOptions{.embed_dim = 4, .num_heads = 2});
  HeadDistance found(*layer);
  // One token: outputs (3, 0) and (0, 4), of lengths 3 and 4; two, with maps at both ends.
  found.add({.outputs = torch::tensor({3.0, 0.0, 0.0, 4.0}, torch::kDouble).view({1, 2, 1, 2}),
             .weights = torch::ones({1, 2, 1, 1}, torch::kDouble),
             .key_padding = {}});
  EXPECT_DOUBLE_EQ(found.outputs(), 5);
  EXPECT_DOUBLE_EQ(found.relative(), 5 / 3.5);
  EXPECT_DOUBLE_EQ(found.probabilities().value(), 0);
  const auto eye = torch::eye(2, torch::kDouble);
  found.add({.outputs = torch::zeros({1, 2, 2, 2}, torch::kDouble),
             .weights = torch::stack({eye, eye.flip(0)}).unsqueeze(0),
             .key_padding = {}});
  EXPECT_DOUBLE_EQ(found.outputs(), 5.0 / 3) << "a mean over tokens, not over passes";
  // |P - P'|_F = 2 over the root of two queries, and 0 of the first pass.
  EXPECT_DOUBLE_EQ(found.probabilities().value(), std::sqrt(2) / 2);
}

TEST(HeadDistance, HeadsOfDifferentScalesHaveNoMapsToCompare) {
  const AttentionBNSHOptions options{
      .embed_dim = 4, .num_heads = 2, .batch_first = true, .variant = "sh"};
  const auto layer = randomised(AttentionBNSH(options));
  HeadDistance found(*layer);
  found.add(Observed(layer, random({2, kLength, 4}), {}).record);
  EXPECT_GT(found.outputs(), 0);
  EXPECT_FALSE(found.probabilities().has_value());
}

TEST(HeadDistance, WantsTwoHeadsWithKeysOfTheirOwn) {
  const auto measure = [](const AttentionBNSHOptions& options) {
    HeadDistance(*AttentionBNSH(options));
  };
  testing_models::expect_error([&] { measure({.embed_dim = 4}); },
                               "HeadDistance: expected at least two heads");
  testing_models::expect_error(
      [&] { measure({.embed_dim = 4, .num_heads = 2, .num_kv_heads = 1}); },
      "2 heads with keys of 1");
}

}  // namespace
}  // namespace kktorch
