// The training loop: seeds, batches, schedule, statistics, files; stopping a run changes nothing.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <numbers>
#include <optional>
#include <set>

#include "models/time_series_classifier.h"
#include "tests/cpp/refusal.h"
#include "train/common/error.h"
#include "train/common/files.h"
#include "train/loop/batches.h"
#include "train/loop/checkpoint.h"
#include "train/loop/metrics.h"
#include "train/loop/optimiser.h"
#include "train/loop/progress.h"
#include "train/loop/seed_stream.h"
#include "train/loop/statistics.h"
#include "train/loop/table.h"
#include "train/loop/trainer.h"
#include "train/runs/model.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;

using test::error_of;

/// One thread, where results are the same to the bit, and a folder of its own for every test.
class TrainerTest : public testing::Test {
 protected:
  void SetUp() override {
    at::set_num_threads(1);
    fs::create_directories(folder_);
  }
  void TearDown() override {
    at::set_num_threads(threads_);
    fs::remove_all(folder_);
  }

  const int threads_ = at::get_num_threads();
  const fs::path folder_ =
      fs::temp_directory_path() / ("kktorch_trainer_" + std::to_string(getpid()));
};

// ---- seeds, batches, schedule

TEST(SeedStream, DependsOnSeedPurposeAndIndexOnly) {
  const auto draw = [](uint64_t seed, const char* purpose, uint64_t index) {
    return SeedStream(seed, purpose, index).next();
  };
  EXPECT_EQ(draw(1, "a", 0), draw(1, "a", 0));
  const std::set<uint64_t> different = {draw(1, "a", 0), draw(2, "a", 0), draw(1, "b", 0),
                                        draw(1, "a", 1), draw(0, "a", 1)};
  EXPECT_EQ(different.size(), 5U);
}

TEST(SeedStream, BelowIsUniform) {
  SeedStream stream(3, "test");
  std::vector<int> counts(6);
  for (int i = 0; i < 60000; ++i) ++counts.at(stream.below(6));
  double chi_square = 0;
  for (const int count : counts) chi_square += std::pow(count - 10000, 2) / 10000;
  EXPECT_LT(chi_square, 20.5);  // 0.999 quantile at 5 degrees of freedom
}

TEST(SeedStream, EveryPermutationIsReached) {
  std::set<std::vector<int64_t>> seen;
  for (uint64_t seed = 0; seed < 400; ++seed) seen.insert(SeedStream(seed, "test").permutation(4));
  EXPECT_EQ(seen.size(), 24U);
  for (auto order : seen) {
    std::sort(order.begin(), order.end());
    EXPECT_EQ(order, (std::vector<int64_t>{0, 1, 2, 3}));
  }
}

TEST(Batches, CoverEveryRowOnceInAnOrderOfTheirEpoch) {
  const auto batches = shuffled_batches(10, 4, 1, 0);
  ASSERT_EQ(batches.size(), 3U);
  EXPECT_EQ(batches[2].size(0), 2);
  const auto rows = torch::cat(batches);
  EXPECT_TRUE(torch::equal(std::get<0>(rows.sort()), torch::arange(10)));
  EXPECT_TRUE(torch::equal(rows, torch::cat(shuffled_batches(10, 4, 1, 0))));
  EXPECT_FALSE(torch::equal(rows, torch::cat(shuffled_batches(10, 4, 1, 1))));
  EXPECT_FALSE(torch::equal(rows, torch::cat(shuffled_batches(10, 4, 2, 0))));
}

TEST(Batches, StratifiedSplitHoldsOutEveryClassAlike) {
  const auto labels =
      torch::cat({torch::zeros(10), torch::ones(20), torch::full(3, 2)}).to(torch::kLong);
  const auto [rest, held_out] = stratified_split(labels, 0.2, 7);
  EXPECT_TRUE(torch::equal(labels.index_select(0, held_out).bincount(), torch::tensor({2, 4, 1})));
  EXPECT_TRUE(torch::equal(std::get<0>(torch::cat({rest, held_out}).sort()), torch::arange(33)));
  EXPECT_FALSE(torch::equal(held_out, stratified_split(labels, 0.2, 8).held_out));
  EXPECT_EQ(stratified_split(labels, 0, 7).held_out.numel(), 0);
}

TEST(Schedule, WarmsUpThenDecaysToZero) {
  const OptimiserOptions options{.learning_rate = 0.5, .warmup = 0.1};
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(options, 0, 100), 0.05);
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(options, 9, 100), 0.5);
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(options, 10, 100), 0.5);
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(options, 55, 100), 0.25);
  EXPECT_NEAR(scheduled_learning_rate(options, 99, 100),
              0.25 * (1 + std::cos(std::numbers::pi * 89 / 90)), 1e-15);
  EXPECT_DOUBLE_EQ(scheduled_learning_rate({.learning_rate = 0.5, .warmup = 0}, 0, 100), 0.5);
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(options, 0, 1), 0.5);
  const OptimiserOptions linear{.learning_rate = 0.5, .warmup = 0.2, .decay = "linear"};
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(linear, 19, 100), 0.5);
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(linear, 40, 100), 0.375);
  EXPECT_NEAR(scheduled_learning_rate(linear, 99, 100), 0.5 / 80, 1e-15);
}

// ---- optimiser

struct TwoParameters : torch::nn::Module {
  at::Tensor weight = register_parameter("weight", torch::full({2}, 3.0));
  at::Tensor beta = register_parameter("beta", torch::full({2}, 3.0));
};

TEST(Optimiser, DecaysAllButBeta) {
  TwoParameters model;
  Optimiser optimiser(model, {.learning_rate = 0.1, .weight_decay = 0.5, .warmup = 0}, 10);
  for (auto& parameter : model.parameters()) parameter.mutable_grad() = torch::zeros({2});
  ASSERT_TRUE(optimiser.update(0));
  EXPECT_TRUE(torch::allclose(model.weight, torch::full({2}, 3.0 * (1 - 0.1 * 0.5))));
  EXPECT_TRUE(torch::equal(model.beta, torch::full({2}, 3.0)));
}

TEST(Optimiser, ClipsTheNormOfAllGradientsTogether) {
  TwoParameters model;
  Optimiser optimiser(model, {.clip = 1}, 10);
  model.weight.mutable_grad() = torch::tensor({3.0f, 0.0f});
  model.beta.mutable_grad() = torch::tensor({0.0f, 4.0f});
  ASSERT_TRUE(optimiser.update(0));
  EXPECT_NEAR(model.weight.grad()[0].item<double>(), 0.6, 1e-6);
  EXPECT_NEAR(model.beta.grad()[1].item<double>(), 0.8, 1e-6);
}

TEST(Optimiser, RefusesGradientsThatAreNotFinite) {
  TwoParameters model;
  Optimiser optimiser(model, {}, 10);
  model.weight.mutable_grad() = torch::tensor({1.0f, std::nanf("")});
  model.beta.mutable_grad() = torch::zeros({2});
  EXPECT_FALSE(optimiser.update(0));
  EXPECT_TRUE(torch::equal(model.weight, torch::full({2}, 3.0)));
}

TEST(Optimiser, RefusesAnUnknownDecay) {
  TwoParameters model;
  EXPECT_EQ(error_of([&] { Optimiser(model, {.decay = "step"}, 10); }),
            "training: expected decay in cosine, linear, but got 'step'");
}

// ---- statistics and tables

TEST(Statistics, MeanAndSampleDeviation) {
  EXPECT_DOUBLE_EQ(mean(std::vector{1.0, 2.0, 6.0}), 3);
  EXPECT_DOUBLE_EQ(sample_sd(std::vector{1.0, 2.0, 6.0}), std::sqrt(7.0));
  EXPECT_TRUE(std::isnan(sample_sd(std::vector{1.0})));
}

TEST(Statistics, StudentQuantilesOfThePrintedTables) {
  EXPECT_NEAR(student_t_quantile(0.975, 1), 12.7062, 5e-5);
  EXPECT_NEAR(student_t_quantile(0.975, 2), 4.30265, 5e-6);
  EXPECT_NEAR(student_t_quantile(0.975, 3), 3.18245, 5e-6);
  EXPECT_NEAR(student_t_quantile(0.975, 4), 2.77645, 5e-6);
  EXPECT_NEAR(student_t_quantile(0.95, 9), 1.83311, 5e-6);
  EXPECT_NEAR(student_t_quantile(0.995, 30), 2.75000, 5e-6);
  EXPECT_NEAR(student_t_quantile(0.975, 100000), 1.95996, 5e-5);  // the normal quantile
  EXPECT_NEAR(student_t_quantile(0.5, 5), 0, 1e-12);
}

TEST(Statistics, PairedDifference) {
  // Differences 1, 2, 3: mean 2, sd 1, half width 4.30265 / sqrt(3).
  const auto result = paired_difference(std::vector{2.0, 4.0, 6.0}, std::vector{1.0, 2.0, 3.0});
  EXPECT_DOUBLE_EQ(result.mean, 2);
  EXPECT_NEAR(result.low, 2 - 4.30265 / std::sqrt(3), 1e-5);
  EXPECT_NEAR(result.high, 2 + 4.30265 / std::sqrt(3), 1e-5);
  EXPECT_TRUE(std::isnan(paired_difference(std::vector{2.0}, std::vector{1.0}).low));
  EXPECT_THROW(paired_difference(std::vector{2.0}, std::vector<double>{}), UserError);
}

TEST(TableText, AlignsCodePointsAndNumbers) {
  Table table({"name", "value", "path"});
  table.add({"a", "1.5 ± 0.1", "x"});
  table.add({"long name", "10", "yy"});
  EXPECT_EQ(table.text(),
            "name           value  path\n"
            "---------  ---------  ----\n"
            "a          1.5 ± 0.1  x\n"
            "long name         10  yy\n");
}

TEST(ProgressText, Clock) {
  EXPECT_EQ(clock_text(0.4), "0:00");
  EXPECT_EQ(clock_text(59.6), "1:00");
  EXPECT_EQ(clock_text(3723), "1:02:03");
}

// ---- files

TEST_F(TrainerTest, FilesAreWholeOrAbsent) {
  const auto file = folder_ / "file";
  write_file(file, "first");
  write_file(file, "second");
  EXPECT_EQ(read_file(file), "second");
  append_line(file, "!");
  EXPECT_EQ(read_file(file), "second!\n");
  EXPECT_FALSE(fs::exists(folder_ / "file.tmp"));
  EXPECT_NE(error_of([&] {
              write_file(file / "below a file", "x");
            }).find("expected to write this file, but got: Not a directory"),
            std::string::npos);
  EXPECT_NE(
      error_of([&] { make_folder(file / "below a file"); }).find("expected to create this folder"),
      std::string::npos);
}

TEST_F(TrainerTest, MetricsAreCutBackToTheCheckpoint) {
  MetricsSink sink(folder_);
  for (int epoch = 1; epoch <= 3; ++epoch)
    sink.append({{"epoch", epoch}, {"loss", 0.5 / epoch}, {"valid", std::nan("")}});
  EXPECT_EQ(read_file(folder_ / "metrics.csv"),
            "epoch,loss,valid\n1,0.5,\n2,0.25,\n3,0.16666666666666666,\n");
  const auto jsonl = read_file(folder_ / "metrics.jsonl");
  EXPECT_EQ(jsonl.substr(0, jsonl.find('\n')), R"({"epoch":1,"loss":0.5,"valid":null})");

  std::ofstream(folder_ / "metrics.jsonl", std::ios::app)
      << R"({"epoch":4,"lo)";  // the power failed here
  sink.keep_until(9);
  EXPECT_EQ(read_file(folder_ / "metrics.jsonl"), jsonl);
  sink.keep_until(1);
  EXPECT_EQ(read_file(folder_ / "metrics.csv"), "epoch,loss,valid\n1,0.5,\n");
  sink.keep_until(0);
  EXPECT_FALSE(fs::exists(folder_ / "metrics.csv"));
}

// ---- trainer

/// Three noisy classes of ragged series, easy to learn.
Examples toy_examples(int64_t n, uint64_t seed) {
  torch::manual_seed(seed);
  const auto labels = torch::arange(n) % 3;
  auto inputs = torch::randn({n, 6, 2}) * 0.3 + labels.view({-1, 1, 1});
  const auto mask = torch::arange(6).unsqueeze(0) >= (torch::arange(n) % 4 + 3).unsqueeze(1);
  return {inputs.masked_fill(mask.unsqueeze(2), 0), mask, labels};
}

Trainer::Data toy_data() { return {toy_examples(30, 1), toy_examples(9, 2), toy_examples(12, 3)}; }

TimeSeriesClassifier toy_model(const std::string& attention) {
  seed_torch(5, "initial weights");
  return TimeSeriesClassifier(TimeSeriesClassifierOptions{.channels = 2,
                                                          .classes = 3,
                                                          .max_length = 6,
                                                          .encoder = {.width = 8,
                                                                      .heads = 2,
                                                                      .ffn = 16,
                                                                      .layers = 1,
                                                                      .dropout = 0.2,
                                                                      .attention = attention,
                                                                      .beta_mode = "per_head"}});
}

const TrainerOptions kToyOptions{
    .epochs = 5, .batch_size = 8, .seed = 5, .optimiser = {.learning_rate = 1e-2}};

struct Result {
  TensorMap state;
  std::vector<EpochRecord> records;
  std::vector<int64_t> checkpoint_epochs;
};

/// Trains the toy model; with `stop_at`, until that many steps are done, saves, and goes on with a
/// new model and trainer.
Result train_toy(const std::string& attention, const fs::path& folder,
                 std::optional<int64_t> stop_at = {}) {
  Result result;
  Trainer* current = nullptr;
  const Trainer::Observer observer{
      .on_batch = [](const TrainerState&) {},
      .on_epoch = [&](const EpochRecord& record) { result.records.push_back(record); },
      .on_checkpoint =
          [&](const Checkpoint& checkpoint) {
            save_checkpoint(folder / "checkpoint.pt", checkpoint);
          },
      .stop_requested = [&] { return stop_at && current->state().step == *stop_at; }};
  for (;;) {
    auto model = toy_model(attention);
    Trainer trainer(*model, forward_of(model), toy_data(), kToyOptions);
    if (!result.state.empty()) trainer.restore(load_checkpoint(folder / "checkpoint.pt"));
    current = &trainer;
    const bool finished = trainer.run(observer);
    result.state = trainer.checkpoint().model;
    if (finished) return result;
    EXPECT_EQ(trainer.state().step, *stop_at);
    stop_at.reset();
    torch::manual_seed(99);  // what other code did to the generator in between must not matter
  }
}

void expect_same_bits(const Result& actual, const Result& expected) {
  ASSERT_EQ(actual.state.size(), expected.state.size());
  for (const auto& [name, tensor] : expected.state)
    EXPECT_TRUE(torch::equal(actual.state.at(name), tensor)) << name;
  ASSERT_EQ(actual.records.size(), expected.records.size());
  for (size_t i = 0; i < expected.records.size(); ++i) {
    const auto &a = actual.records[i], &b = expected.records[i];
    EXPECT_EQ(a.epoch, b.epoch);
    EXPECT_EQ(a.step, b.step);
    EXPECT_EQ(a.learning_rate, b.learning_rate);
    for (const auto part : {&EpochRecord::train, &EpochRecord::valid, &EpochRecord::test}) {
      EXPECT_EQ((a.*part).loss, (b.*part).loss) << "epoch " << a.epoch;
      EXPECT_EQ((a.*part).accuracy, (b.*part).accuracy) << "epoch " << a.epoch;
    }
  }
}

TEST_F(TrainerTest, IsDeterministicAndLearns) {
  for (const auto* attention : {"softmax", "bn"}) {
    const auto first = train_toy(attention, folder_), second = train_toy(attention, folder_);
    expect_same_bits(second, first);
    ASSERT_EQ(first.records.size(), 5U);
    EXPECT_EQ(first.records.back().step, 20);
    EXPECT_LT(first.records.back().train.loss, first.records.front().train.loss) << attention;
    // Guessing gets 9 or more of the 12 test cases right with probability 0.004.
    EXPECT_GE(first.records.back().test.accuracy, 0.75) << attention;
  }
}

// Step 0: before anything is learnt; 6, 10: within an epoch; 8: between two; 20: after the last.
TEST_F(TrainerTest, ResumeContinuesToTheSameBits) {
  const auto whole = train_toy("bn", folder_);
  for (const int64_t step : {0, 6, 8, 10, 20}) {
    SCOPED_TRACE("stopped at step " + std::to_string(step));
    expect_same_bits(train_toy("bn", folder_, step), whole);
  }
}

TEST_F(TrainerTest, KeepsFinalBestValidationAndBestTestApart) {
  auto model = toy_model("softmax");
  Trainer trainer(*model, forward_of(model), toy_data(), kToyOptions);
  std::vector<EpochRecord> records;
  trainer.run({.on_batch = [](const TrainerState&) {},
               .on_epoch = [&](const EpochRecord& record) { records.push_back(record); },
               .on_checkpoint = [](const Checkpoint&) {},
               .stop_requested = [] { return false; }});
  const auto best = [&](Score EpochRecord::*part) {
    auto winner = records.front();
    for (const auto& record : records)
      if (std::pair(-(record.*part).accuracy, (record.*part).loss) <
          std::pair(-(winner.*part).accuracy, (winner.*part).loss))
        winner = record;
    return winner.epoch;
  };
  EXPECT_EQ(trainer.state().last.epoch, 5);
  EXPECT_EQ(trainer.state().best_validation.epoch, best(&EpochRecord::valid));
  EXPECT_EQ(trainer.state().best_test.epoch, best(&EpochRecord::test));
}

TEST_F(TrainerTest, StopsAtTheFirstLossThatIsNotFiniteAndKeepsTheCheckpoint) {
  auto model = toy_model("bn");
  const auto good = forward_of(model);
  int64_t calls = 0;
  // An epoch takes 4 training batches and 2 evaluations: the 14th call is in the third epoch.
  const auto forward = [&](const at::Tensor& x, const at::Tensor& mask) {
    return good(x, mask) * (++calls < 14 ? 1 : std::nan(""));
  };
  Trainer trainer(*model, forward, toy_data(), kToyOptions);
  std::optional<Checkpoint> last;
  const auto error = error_of([&] {
    trainer.run({.on_batch = [](const TrainerState&) {},
                 .on_epoch = [](const EpochRecord&) {},
                 .on_checkpoint =
                     [&](const Checkpoint& checkpoint) {
                       save_checkpoint(folder_ / "checkpoint.pt", checkpoint);
                     },
                 .stop_requested = [] { return false; }});
  });
  EXPECT_NE(error.find("expected a finite loss and gradient, but got loss nan in epoch 3, step 10"),
            std::string::npos)
      << error;
  const auto kept = load_checkpoint(folder_ / "checkpoint.pt");
  EXPECT_EQ(kept.progress.at("epoch").toLong(), 2);
  for (const auto& [name, tensor] : kept.model)
    EXPECT_TRUE(tensor.isfinite().all().item<bool>()) << name;
}

TEST_F(TrainerTest, ForeignCheckpointsAreRefusedByTheFirstDifference) {
  auto model = toy_model("bn");
  const auto state = model_state(*model);
  const auto refuse = [&](const TensorMap& other) {
    return error_of([&] { load_model_state(*model, other); });
  };

  auto missing = state;
  missing.erase("head.bias");
  EXPECT_EQ(refuse(missing), "checkpoint: expected head.bias [3] Float, but got none");
  auto shaped = state;
  shaped["head.bias"] = torch::zeros({4});
  EXPECT_EQ(refuse(shaped), "checkpoint: expected head.bias [3] Float, but got [4] Float");
  auto typed = state;
  typed["head.bias"] = torch::zeros({3}, torch::kDouble);
  EXPECT_EQ(refuse(typed), "checkpoint: expected head.bias [3] Float, but got [3] Double");
  auto extra = state;
  extra["tail.bias"] = torch::zeros({1});
  EXPECT_EQ(refuse(extra), "checkpoint: expected no entry tail.bias, but got [1] Float");

  write_file(folder_ / "noise.pt", "no checkpoint");
  EXPECT_NE(error_of([&] {
              load_checkpoint(folder_ / "noise.pt");
            }).find("noise.pt: expected a checkpoint of kktorch"),
            std::string::npos);
}

TEST_F(TrainerTest, CheckpointsKeepEveryValue) {
  const Checkpoint written{{{"w", torch::randn({3, 2})}, {"n", torch::tensor(7)}},
                           {},
                           torch::tensor({1, 2, 3}, torch::kByte),
                           {{"epoch", int64_t{1} << 60}, {"loss", 0.1}, {"none", std::nan("")}}};
  save_checkpoint(folder_ / "checkpoint.pt", written);
  const auto read = load_checkpoint(folder_ / "checkpoint.pt");
  EXPECT_TRUE(torch::equal(read.model.at("w"), written.model.at("w")));
  EXPECT_TRUE(torch::equal(read.model.at("n"), written.model.at("n")));
  EXPECT_TRUE(read.optimizer.empty());
  EXPECT_TRUE(torch::equal(read.rng, written.rng));
  EXPECT_EQ(read.progress.at("epoch").toLong(), int64_t{1} << 60);
  EXPECT_EQ(read.progress.at("loss").toDouble(), 0.1);
  EXPECT_TRUE(std::isnan(read.progress.at("none").toDouble()));
}

}  // namespace
}  // namespace kktorch
