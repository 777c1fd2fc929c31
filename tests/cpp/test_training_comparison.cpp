// Experiments that train classifiers: controls inside them, settings that decide about the runs,
// and what the tables say.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <filesystem>

#include "models/time_series_classifier.h"
#include "tests/cpp/model_testing.h"
#include "train/common/error.h"
#include "train/data/listops.h"
#include "train/experiments/primal_dual/controlled_attention.h"
#include "train/experiments/primal_dual/training_comparison.h"
#include "train/experiments/registry.h"
#include "train/experiments/reproduction.h"

namespace kktorch::primal_dual {
namespace {

namespace fs = std::filesystem;
using namespace testing_models;
using nlohmann::ordered_json;
using torch::Tensor;
using Operands = QueryKeyOptions::Operands;

// ---- controls

AttentionBNSH small_attention() {
  return AttentionBNSH(AttentionBNSHOptions{
      .embed_dim = 12, .num_heads = 3, .batch_first = true, .variant = "softmax"});
}

/// `attention` with a control, all parameters random, in float64.
std::shared_ptr<ControlledAttention> controlled(QueryKeyOptions control) {
  return randomised(std::make_shared<ControlledAttention>(*small_attention(), control));
}

Tensor output_of(AttentionBNSHImpl& attention, const Tensor& x, const Tensor& padding = {}) {
  return std::get<0>(attention.forward(x, x, x, padding));
}

/// Softmax attention by its formula, with `change` applied to heads [B, 3, L, 4] of q and of k.
template <typename Change>
Tensor by_formula(const ControlledAttention& attention, const Tensor& x, const Change& change) {
  const auto heads = torch::linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, 2);
  const auto split = [](const Tensor& t) { return t.unflatten(2, {3, 4}).transpose(1, 2); };
  const auto [q, k] = change(split(heads[0]), split(heads[1]));
  const auto p = (torch::matmul(q, k.transpose(2, 3)) / 2).softmax(3);
  const auto out = torch::matmul(p, split(heads[2])).transpose(1, 2).flatten(2);
  return torch::linear(out, attention.out_proj->weight, attention.out_proj->bias);
}

TEST(ControlledAttention, FollowsItsFormula) {
  const auto x = random({2, 5, 12});
  const auto parameter = [](const ControlledAttention& attention, const char* name) {
    return attention.named_parameters()["control." + std::string(name)];
  };
  const auto bias = controlled({.query_bias = true});
  EXPECT_EQ(parameter(*bias, "query_bias").sizes(), (std::vector<int64_t>{3, 1, 4}));
  expect_close(output_of(*bias, x), by_formula(*bias, x, [&](const Tensor& q, const Tensor& k) {
                 return std::pair{q + parameter(*bias, "query_bias"), k};
               }));
  const auto layer = controlled({.operands = Operands::kLayerNorm});
  expect_close(output_of(*layer, x), by_formula(*layer, x, [&](const Tensor& q, const Tensor& k) {
                 return std::pair{
                     torch::layer_norm(q, {4}, parameter(*layer, "query_gain"), {}, 1e-5),
                     torch::layer_norm(k, {4}, parameter(*layer, "key_gain"), {}, 1e-5)};
               }));
  const auto rms = controlled({.operands = Operands::kRmsNorm});
  expect_close(output_of(*rms, x), by_formula(*rms, x, [&](const Tensor& q, const Tensor& k) {
                 const auto norm = [](const Tensor& t) {
                   return t / torch::sqrt(t.square().sum(-1, true) / 4 + 1e-5);
                 };
                 return std::pair{norm(q) * parameter(*rms, "query_gain"),
                                  norm(k) * parameter(*rms, "key_gain")};
               }));
}

TEST(ControlledAttention, KeepsTheWeightsAndStartsAsSoftmaxAttention) {
  auto original = small_attention();
  const auto x = torch::randn({2, 5, 12});
  const auto expected = output_of(*original, x);
  ControlledAttention plain(*original, {}), bias(*original, {.query_bias = true}),
      norm(*original, {.operands = Operands::kRmsNorm});
  EXPECT_TRUE(torch::equal(output_of(plain, x), expected));
  EXPECT_TRUE(torch::equal(output_of(bias, x), expected));
  EXPECT_GT((output_of(norm, x) - expected).abs().max().item<double>(), 1e-3);
}

TEST(ControlledAttention, RefusesAnythingButSoftmax) {
  expect_error([] { ControlledAttention(*AttentionBNSH(4, 2), {}); },
               "ControlledAttention: expected variant softmax, but got bn");
}

TimeSeriesClassifier small_classifier() {
  return randomised(
      TimeSeriesClassifier(TimeSeriesClassifierOptions{.channels = 2,
                                                       .classes = 3,
                                                       .max_length = 6,
                                                       .encoder = {.width = 8,
                                                                   .heads = 2,
                                                                   .ffn = 10,
                                                                   .layers = 2,
                                                                   .norm = "layer",
                                                                   .attention = "softmax"}}));
}

/// Logits and the gradient of their squares with respect to every parameter.
std::vector<Tensor> logits_and_gradients(TimeSeriesClassifier& model, const Tensor& x,
                                         const Tensor& padding) {
  std::vector<Tensor> found = {model->forward(x, padding)};
  for (auto& gradient : torch::autograd::grad({found[0].square().sum()}, model->parameters()))
    found.push_back(gradient);
  return found;
}

TEST(Controls, MeanOfTheKeysChangesNeitherLogitsNorGradientsOfAClassifier) {
  auto model = small_classifier();
  const auto x = random({4, 6, 2}), padding = padding_mask({6, 3, 1, 5}, 6);
  const auto expected = logits_and_gradients(model, x, padding);
  const auto names = model->named_parameters().keys();
  model->to(torch::kFloat);  // the layers that are put in are float32, as those of a new model
  add_control(*model, {.operands = Operands::kKeysCentred});
  EXPECT_EQ(model->named_parameters().keys().size(), names.size());
  for (const auto& module : model->modules())
    EXPECT_TRUE(!module->as<AttentionBNSH>() || module->as<ControlledAttention>());
  model = randomised(model);
  // The same numbers in the same order, because the parameters are.
  EXPECT_EQ(model->named_parameters().keys(), names);
  const auto found = logits_and_gradients(model, x, padding);
  for (size_t i = 0; i < found.size(); ++i) expect_close(found[i], expected[i], 1e-10);
}

// ---- settings

/// 40 sequences of five tokens, the class being the first one.
Dataset first_token() {
  const auto examples = [](int64_t n) {
    Examples some;
    some.inputs = torch::arange(5 * n).reshape({n, 5}).remainder(3).add(1).to(torch::kByte);
    some.labels = some.inputs.select(1, 0).to(torch::kLong) - 1;
    some.padding_mask = some.inputs.eq(0);
    return some;
  };
  return {.name = "first",
          .kind = DataKind::kTokens,
          .class_labels = {"1", "2", "3"},
          .vocabulary = 4,
          .train = examples(40),
          .test = examples(9),
          .validation = examples(6),
          .origin = {}};
}

ordered_json small_settings() {
  return {{"methods", {"softmax", "linear", "bnsh"}},
          {"tokens", model_settings(DataKind::kTokens, {{"width", 8},
                                                        {"heads", 2},
                                                        {"ffn", 12},
                                                        {"scales", {1, 5}},
                                                        {"head_width", 6},
                                                        {"steps", 3},
                                                        {"learning_rate", 0.5}})},
          {"seeds", 2}};
}

TEST(ComparisonSettings, DecideAboutTheRuns) {
  const auto config = base_config(small_settings(), first_token());
  const auto& encoder = encoder_of(config.model);
  EXPECT_EQ(encoder.width, 8);
  EXPECT_EQ(encoder.scales, (std::vector<int64_t>{1, 5}));
  EXPECT_EQ(std::get<TokenClassifierOptions>(config.model).head_width, 6);
  EXPECT_EQ(config.training.steps, 3);
  EXPECT_EQ(config.training.learning_rate, 0.5);
  // What is not changed is that of the preset, and named.
  const auto untouched = preset(DataKind::kTokens);
  EXPECT_EQ(encoder.layers, encoder_of(untouched.model).layers);
  EXPECT_EQ(small_settings().at("tokens").at("decay"), untouched.training.decay);
  for (const auto* method : {"attention", "use_std", "seed", "epochs"})
    EXPECT_FALSE(small_settings().at("tokens").contains(method)) << method;
}

TEST(ComparisonSettings, EpochsAreThoseOfTheDataSet) {
  auto dataset = first_token();
  dataset.name = "other";
  const ordered_json settings = {{"epochs", {{"first", 7}, {"other", 9}}},
                                 {"tokens", model_settings(DataKind::kTokens, {{"steps", 0}})}};
  EXPECT_EQ(base_config(settings, dataset).training.epochs, 9);
}

// ---- tables

class ComparisonTest : public testing::Test {
 protected:
  void TearDown() override { fs::remove_all(folder_); }

  const fs::path folder_ =
      fs::temp_directory_path() / ("kktorch_comparison_" + std::to_string(getpid()));
};

TEST_F(ComparisonTest, TablesHoldEveryMethodTheMajorityAndTheCostModel) {
  Context context(small_settings(), 1, folder_);
  const auto tables = compare_on(context, first_token());
  ASSERT_EQ(tables.size(), 3U);
  EXPECT_EQ(tables[0].rows.size(), 3U);
  EXPECT_EQ(tables[0].columns.size(), 1 + std::size(kChosenEpochs));
  // Fits 40, of 9 test samples a third are of each class.
  EXPECT_NE(tables[0].note.find("Fitted: 40, held out for validation: 6, test: 9; one test sample "
                                "= 11.11 %. Always the most frequent class: 33.33 %."),
            std::string::npos)
      << tables[0].note;
  EXPECT_EQ(tables[1].rows[0][0], "linear − softmax");
  EXPECT_EQ(tables[1].rows[1][0], "bnsh − softmax");
  // N = 5, d = 8, f = 12, r = (1 + 1/5) / 2; per token: 8 d^2 + 4 N d + 4 d f and what replaces it.
  const double full = 8 * 64 + 4 * 5 * 8 + 4 * 8 * 12, r = 0.6;
  const std::vector<double> relative = {1, (full - 4 * 5 * 8 + 4 * 8 * 4) / full,
                                        (4 * 64 * (1 + r) + 4 * 5 * 8 * r + 4 * 8 * 12) / full};
  for (size_t m = 0; m < relative.size(); ++m)
    EXPECT_NEAR(tables[2].rows[m][1].at("value").get<double>(), relative[m], 1e-12) << m;
  EXPECT_TRUE(tables[2].figure && std::string(tables[2].figure->form) == "scatter");
}

TEST_F(ComparisonTest, RunsAreThoseOfTheSummariesAndChangedOnesAreNotExported) {
  Context context(small_settings(), 1, folder_);
  const auto dataset = first_token();
  const auto base = encoder_of(base_config(context.settings(), dataset).model);
  ComparedMethod changed{method_named("softmax", base)};
  changed.method.label = "changed";
  changed.change = [](torch::nn::Module& model) { add_control(model, {.query_bias = true}); };
  changed.inspect = [](const fs::path& folder, const Dataset& data) {
    return nlohmann::json(folder.string() + ' ' + data.name);
  };
  const auto trained = train_methods(context, dataset, {{method_named("softmax", base)}, changed});
  for (const auto* run : {"first-softmax-seed2/run", "first-changed-seed2/run"}) {
    const auto summary = read_json(folder_ / run / "summary.json");
    const auto m = summary.at("method") == "changed" ? 1 : 0;
    for (size_t e = 0; e < std::size(kChosenEpochs); ++e)
      EXPECT_EQ(trained.accuracy[m].values[e][1],
                100 * summary.at(kChosenEpochs[e].key).at("test_accuracy").get<double>());
    EXPECT_EQ(fs::exists(folder_ / run / "model.ts"), m == 0);
  }
  EXPECT_TRUE(trained.inspected[0][0].is_null());
  EXPECT_EQ(trained.inspected[1][0], (folder_ / "first-changed-seed1/run").string() + " first");
}

TEST_F(ComparisonTest, ControlsReportTheirDifferencesTheDeviationAndTheLearnedStrengths) {
  testing::internal::CaptureStdout();
  const auto result =
      *reproduce(find_experiment("primal-dual", "controls"),
                 {.preset = Preset::kSmoke, .seed = 1, .folder = folder_, .resume = false});
  testing::internal::GetCapturedStdout();
  const auto& tables = result.at("tables");
  std::vector<std::string> differences;
  for (const auto& row : tables.at(1).at("rows")) differences.push_back(row.at(0));
  EXPECT_EQ(differences, (std::vector<std::string>{"softmax-keymean − softmax", "bn − softmax",
                                                   "bn-learned − bn"}));
  const auto& betas = tables.at(2).at("rows").at(0);
  EXPECT_EQ(betas.at(0), "bn-learned");
  EXPECT_EQ(betas.size(), 4U);  // three layers
  for (size_t layer = 1; layer < betas.size(); ++layer) {
    EXPECT_LT(std::abs(betas.at(layer).at("value").get<double>() - 1), 0.01);  // one step of 1e-3
    EXPECT_LT(betas.at(layer).at("low"), betas.at(layer).at("high"));
  }
  // Rounding of class probabilities through three layers, in float32 and in float64; not zero,
  // because the two do compute differently.
  const auto& deviation = tables.at(3).at("rows").at(0);
  for (const auto& [column, bound] : {std::pair{1, 1e-4}, {2, 1e-12}}) {
    EXPECT_LT(deviation.at(column).at("value").get<double>(), bound);
    EXPECT_GT(deviation.at(column).at("value").get<double>(), 0);
  }
}

}  // namespace
}  // namespace kktorch::primal_dual
