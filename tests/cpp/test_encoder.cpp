// A whole encoder that decodes, against its causal forward; its TorchScript form.
#include <gtest/gtest.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/torch.h>

#include <sstream>

#include "model_testing.h"
#include "models/torchscript.h"

namespace kktorch {
namespace {

using testing_models::expect_close;
using testing_models::expect_error;
using testing_models::kNaN;
using testing_models::padding_mask;
using testing_models::random;
using testing_models::randomised;
using torch::Tensor;

constexpr int64_t kWidth = 12, kLength = 11;

Encoder make(const std::string& attention, bool norm_first, int64_t num_special = 0) {
  const EncoderOptions options{.width = kWidth,
                               .heads = 4,
                               .ffn = 20,
                               .layers = 2,
                               .norm = norm_first ? "layer" : "batch",
                               .norm_first = norm_first,
                               .attention = attention,
                               .beta_mode = "per_head",
                               .scales = {3, 1, 4, 2}};
  return randomised(Encoder(options, TokenLayout{.length = kLength, .num_special = num_special}));
}

class CausalEncoder : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Encoder, CausalEncoder, testing::Values("softmax", "bn", "sh", "bnsh"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(CausalEncoder, DecodingIsTheForward) {
  for (const bool norm_first : {false, true}) {
    for (const int64_t num_special : {0, 2}) {
      for (const auto dtype : {torch::kDouble, torch::kFloat}) {
        auto encoder = make(GetParam(), norm_first, num_special);
        encoder->to(dtype);
        const auto x = random({2, kLength, kWidth}).to(dtype);
        const auto expected = encoder(x, Tensor(), true);
        for (const int64_t chunk : {int64_t{1}, int64_t{3}, kLength}) {
          auto caches = encoder->make_caches(2, kLength);
          std::vector<Tensor> parts;
          for (const auto& part : x.split(chunk, 1)) {
            parts.push_back(encoder->decode(part, caches));
          }
          expect_close(torch::cat(parts, 1), expected, dtype == torch::kDouble ? 1e-10 : 2e-5);
        }
      }
    }
  }
}

TEST_P(CausalEncoder, SequencesOfDifferentLengthsAndReorderedBeams) {
  auto encoder = make(GetParam(), true);
  const std::vector<int64_t> lengths{9, 4, 6}, source{2, 0, 0, 1};
  const auto padding = padding_mask(lengths, 9);
  const auto x = random({3, 9, kWidth});
  auto caches = encoder->make_caches(3, kLength);
  const auto prompt = x.masked_fill(padding.unsqueeze(-1), kNaN);
  const auto first = encoder->decode(prompt, caches, lengths);
  // The padded batch in one pass.
  const auto whole = encoder(x, padding, true);
  const auto valid = padding.logical_not();
  expect_close(first.index({valid}), whole.index({valid}));

  for (auto& cache : caches) cache.reorder(torch::tensor(source));
  const auto more = random({4, 2, kWidth});
  const auto second = torch::cat(
      {encoder->decode(more.slice(1, 0, 1), caches), encoder->decode(more.slice(1, 1), caches)}, 1);
  for (size_t b = 0; b < source.size(); ++b) {
    const auto n = lengths[source[b]];
    const auto alone = torch::cat({x[source[b]].slice(0, 0, n), more[b]}).unsqueeze(0);
    expect_close(second[b], encoder(alone, Tensor(), true)[0].slice(0, n));
  }
}

TEST_P(CausalEncoder, SeesNoFuture) {
  auto encoder = make(GetParam(), false);
  const auto x = random({2, kLength, kWidth});
  auto changed = x.clone();
  changed.slice(1, 5) *= -3;
  const auto before = encoder(x, Tensor(), true), after = encoder(changed, Tensor(), true);
  EXPECT_TRUE(torch::equal(before.slice(1, 0, 5), after.slice(1, 0, 5)));
  EXPECT_FALSE(torch::equal(before, after));
}

TEST_P(CausalEncoder, ScriptIsTheEncoder) {
  auto encoder = make(GetParam(), false);
  std::stringstream file;
  to_torchscript(*encoder).save(file);
  auto script = torch::jit::load(file);
  const auto x = random({2, 7, kWidth});
  const auto padding = padding_mask({7, 4}, 7);
  expect_close(script.forward({x}).toTensor(), encoder(x));
  for (const bool is_causal : {false, true})
    expect_close(script.forward({x, padding, is_causal}).toTensor(),
                 encoder(x, padding, is_causal));
  try {
    script.forward({random({2, kLength + 1, kWidth})});
    FAIL() << "no error";
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what())
                  .find("Encoder: expected x [B, L <= 11, width], but got [2, 12, 12]"),
              std::string::npos)
        << error.what();
  }
}

TEST(Encoder, RefusesWhatDoesNotFit) {
  auto encoder = make("bnsh", true);
  const auto x = random({2, 3, kWidth});
  expect_error(
      [&] {
        encoder(random({2, kLength + 1, kWidth}));
      },
      "Encoder: expected x [B, L <= 11, 12], but got [2, 12, 12]");
  expect_error([&] { encoder(x.slice(2, 1)); },
               "Encoder: expected x [B, L <= 11, 12], but got [2, 3, 11]");
  expect_error([&] { encoder->make_caches(2, kLength + 1); },
               "Encoder: expected capacity <= 11, the number of positions, but got 12");
  auto caches = encoder->make_caches(2, 4);
  encoder->decode(x, caches, {3, 1});
  const auto before = caches[1].groups[0].key.clone();
  expect_error(
      [&] {
        encoder->decode(x, caches, {2, 2});
      },
      "KVCache: expected capacity >= 5, but got 4");
  expect_error([&] { encoder->decode(x[0], caches); },
               "Encoder: expected x_new [2, T, 12], but got [3, 12]");
  expect_error([&] { encoder->decode(x.slice(0, 1), caches); },
               "Encoder: expected x_new [2, T, 12], but got [1, 3, 12]");
  encoder->train();
  expect_error(
      [&] {
        encoder->decode(x, caches, {1, 1});
      },
      "EncoderLayer: expected evaluation mode to decode, but got training mode");
  for (const auto& cache : caches) EXPECT_EQ(cache.lengths(), (std::vector<int64_t>{3, 1}));
  EXPECT_TRUE(torch::equal(caches[1].groups[0].key, before));
  caches.pop_back();
  expect_error([&] { encoder->decode(x, caches); },
               "Encoder: expected 2 caches, one per layer, but got 1");
  expect_error([&] { make("linear_bn", true)->make_caches(1, 1); },
               "expected variant in {softmax, bn, sh, bnsh} to decode, but got 'linear_bn'");
}

}  // namespace
}  // namespace kktorch
