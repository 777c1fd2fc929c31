// Experiments: the registry, run folders and what stops a run, tables, and the two experiments that
// train no classifier (the others: test_training_comparison.cpp).
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <set>

#include "tests/cpp/refusal.h"
#include "train/common/error.h"
#include "train/common/files.h"
#include "train/experiments/context.h"
#include "train/experiments/curves.h"
#include "train/experiments/primal_dual/epsilon_svr.h"
#include "train/experiments/primal_dual/retrieval_head.h"
#include "train/experiments/primal_dual/retrieval_task.h"
#include "train/experiments/registry.h"
#include "train/experiments/reproduction.h"
#include "train/loop/metrics.h"
#include "train/loop/seed_stream.h"
#include "train/loop/trainer.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

using test::error_of;

/// While it lives, stdout is swallowed.
struct Quiet {
  Quiet() { testing::internal::CaptureStdout(); }
  ~Quiet() { testing::internal::GetCapturedStdout(); }
};

/// A folder of its own for every test.
class ExperimentTest : public testing::Test {
 protected:
  void TearDown() override { fs::remove_all(folder_); }

  std::optional<ordered_json> run(const Experiment& experiment, bool resume = false,
                                  uint64_t seed = 1) {
    const Quiet quiet;
    return reproduce(experiment, {.preset = Preset::kSmoke,
                                  .seed = seed,
                                  .folder = folder_of(experiment),
                                  .resume = resume});
  }

  fs::path folder_of(const Experiment& experiment) const {
    return folder_ / experiment.paper / experiment.name;
  }

  const fs::path folder_ =
      fs::temp_directory_path() / ("kktorch_experiments_" + std::to_string(getpid()));
};

/// An experiment of three parts, one per seed; `compute` is called with the seed.
Experiment counting(std::function<double(uint64_t)> compute) {
  return {
      .paper = "paper",
      .name = "counting",
      .title = "Counting",
      .claim = "Numbers can be counted.",
      .limits = "anything else.",
      .times = {"1 s", "1 s", "1 s"},
      .settings =
          [](Preset) {
            return ordered_json{{"seeds", 3}};
          },
      .run = [compute](Context& context) -> std::vector<ResultTable> {
        std::vector<double> values;
        for (const auto seed : context.seeds())
          values.push_back(
              context.part(fmt::format("seed{}", seed), [&](const auto&) { return compute(seed); })
                  .template get<double>());
        return {{.title = "Counts",
                 .columns = {"what", "count"},
                 .rows = {{"seeds", spread_cell(values, "{:.1f}")}},
                 .note = "A note.",
                 .figure = {}}};
      }};
}

// ---- registry

TEST(Registry, EveryExperimentSaysWhatItClaimsAndWhatNot) {
  std::set<std::string> names;
  for (const auto& experiment : experiments()) {
    EXPECT_TRUE(names.insert(experiment.paper + ' ' + experiment.name).second) << experiment.name;
    for (const auto& text :
         {experiment.paper, experiment.title, experiment.claim, experiment.limits})
      EXPECT_FALSE(text.empty()) << experiment.name;
    EXPECT_EQ(experiment.times.size(), std::size(kPresetNames)) << experiment.name;
    EXPECT_EQ(&find_experiment(experiment.paper, experiment.name), &experiment);
  }
  EXPECT_TRUE(names.contains("primal-dual retrieval"));
  EXPECT_TRUE(names.contains("primal-dual svr"));
  EXPECT_NE(error_of([] {
              find_experiment("primal-dual", "nothing");
            }).find("reproduce: expected one of primal-dual uea, primal-dual digits"),
            std::string::npos);
}

TEST_F(ExperimentTest, EveryExperimentRunsInPresetSmoke) {
  for (const auto& experiment : experiments()) {
    const auto result = run(experiment);
    ASSERT_TRUE(result) << experiment.name;
    EXPECT_EQ(result->at("claim"), experiment.claim);
    EXPECT_EQ(result->at("seeds").size(), result->at("settings").at("seeds").get<size_t>());
    for (const auto& table : result->at("tables"))
      for (const auto& row : table.at("rows"))
        EXPECT_EQ(row.size(), table.at("columns").size()) << table.at("title");
    EXPECT_GT(result->at("tables").size(), 0U);
    const auto text = read_file(folder_of(experiment) / "table.txt");
    EXPECT_NE(text.find("This does not show: " + experiment.limits), std::string::npos);
  }
}

// ---- run folders

TEST_F(ExperimentTest, ResultHoldsConfigurationSeedsAndTables) {
  const auto result =
      *run(counting([](uint64_t seed) { return static_cast<double>(seed); }), false, 5);
  EXPECT_EQ(result.at("seeds"), ordered_json({5, 6, 7}));
  EXPECT_EQ(result.at("experiment").at("preset"), "smoke");
  const auto& cell = result.at("tables").at(0).at("rows").at(0).at(1);
  EXPECT_EQ(cell.at("text"), "6.0 ± 1.0");
  EXPECT_EQ(cell.at("value"), 6);
  EXPECT_EQ(read_file(folder_ / "paper/counting/table.txt"),
            "Counting\nNumbers can be counted.\n\nCounts\n\nwhat       count\n-----  ---------\n"
            "seeds  6.0 ± 1.0\nA note.\n\nThis does not show: anything else.\n");
}

TEST_F(ExperimentTest, FinishedRunIsReadBackAndNeverReplaced) {
  int calls = 0;
  const auto experiment = counting([&](uint64_t) { return ++calls; });
  const auto result = run(experiment);
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(run(experiment, /*resume=*/true), result);
  EXPECT_EQ(calls, 3);
  EXPECT_NE(error_of([&] { run(experiment); }).find("pass --resume to continue it"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              run(experiment, true, 2);
            }).find("experiment/first_seed is 1 there and 2 here"),
            std::string::npos);
}

TEST_F(ExperimentTest, SignalStopsBetweenPartsAndResumeContinues) {
  std::vector<uint64_t> computed;
  const auto experiment = counting([&](uint64_t seed) {
    computed.push_back(seed);
    if (computed.size() == 2) std::raise(SIGINT);
    return static_cast<double>(seed);
  });
  testing::internal::CaptureStderr();
  EXPECT_FALSE(run(experiment));
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "stopped; the same command with --resume continues it\n");
  EXPECT_FALSE(fs::exists(folder_ / "paper/counting/result.json"));
  ASSERT_TRUE(run(experiment, /*resume=*/true));
  EXPECT_EQ(computed, (std::vector<uint64_t>{1, 2, 3}));
}

TEST_F(ExperimentTest, NumberThatIsNotFiniteEndsTheRun) {
  const auto experiment = counting([](uint64_t seed) { return seed == 2 ? std::nan("") : 1.0; });
  EXPECT_THROW(run(experiment), DivergedError);
  EXPECT_TRUE(fs::exists(folder_ / "paper/counting/seed1/summary.json"));
  EXPECT_FALSE(fs::exists(folder_ / "paper/counting/seed2/summary.json"));
  EXPECT_NE(error_of([&] { run(experiment, true); }).find("expected finite numbers in seed2"),
            std::string::npos);
}

// ---- tables

TEST(Result, MethodsOverSeedsAreComparedInPairs) {
  // Differences 2, 3, 4 and -1, 1, 0: sd 1, t(0.975, 2) = 4.302653, half width 4.302653 / sqrt(3).
  const std::vector<MethodValues> methods = {{"a", {{1, 2, 3}, {4, 4, 4}}},
                                             {"b", {{3, 5, 7}, {3, 5, 4}}}};
  const auto means = mean_rows(methods, "{:.2f}"),
             differences = difference_rows(methods, "{:+.2f}");
  EXPECT_EQ(means[1][0], "b");
  EXPECT_EQ(means[1][1].at("text"), "5.00 ± 2.00");
  ASSERT_EQ(differences.size(), 1U);
  EXPECT_EQ(differences[0][0], "b − a");
  EXPECT_EQ(differences[0][1].at("text"), "+3.00 [+0.52, +5.48]");
  EXPECT_NEAR(differences[0][2].at("high").get<double>(), 2.484138, 1e-6);
  EXPECT_EQ(difference_rows({{"a", {{1, 2}}}, {"b", {{1, 2}}}}, "{:.0f}")[0][1].at("text"),
            "0, every seed");
  EXPECT_EQ(difference_rows({{"a", {{1}}}, {"b", {{3}}}}, "{:.0f}")[0][1].at("text"), "2");
}

TEST_F(ExperimentTest, CurvesAreMeansOverTrialsAtTheStepsOfAll) {
  Sweep sweep{"H", {4}, {}, {{folder_ / "a"}, {folder_ / "b"}}};
  const auto write = [&](const char* part, const std::vector<double>& losses) {
    make_folder(folder_ / part);
    MetricsSink sink(folder_ / part);
    for (size_t step = 0; step < losses.size(); ++step)
      sink.append({{"step", step}, {"loss", losses[step]}, {"drift", nullptr}});
  };
  write("a", {1, 0.5, 0.2});
  write("b", {3, 0.7});  // it has stopped early
  const auto loss = curve_tables(sweep, "Runs", "heads H", {{"loss", "L"}, {"drift", "D"}}).at(0);
  EXPECT_EQ(loss.title, "Runs: L");
  EXPECT_EQ(loss.columns, (std::vector<std::string>{"step", "0", "1"}));
  ASSERT_EQ(loss.rows.size(), 1);
  EXPECT_EQ(loss.rows[0][0], "H = 4");
  EXPECT_DOUBLE_EQ(loss.rows[0][1].at("value"), 2);
  EXPECT_NEAR(loss.rows[0][1].at("high"), 2 + 12.7062 * 1, 1e-3);  // t of one degree, 97.5 %
  const auto bounds = bound_table(sweep, "Runs", {{"loss", "L over its bound"}});
  ASSERT_EQ(bounds.columns.size(), 4);
  EXPECT_DOUBLE_EQ(bounds.rows[0][1].at("value"), 3);
  EXPECT_DOUBLE_EQ(bounds.rows[0][1].at("low"), 1);
  EXPECT_DOUBLE_EQ(bounds.rows[0][3].at("value"), 0.2);
}

TEST_F(ExperimentTest, LongCurvesHaveThePowersOfTwoAndTheirEnd) {
  MetricsSink sink(folder_);
  make_folder(folder_);
  for (int step = 0; step <= 100; ++step) sink.append({{"step", step}, {"loss", 1.0}});
  const auto table =
      curve_tables({"H", {1}, {}, {{folder_}}}, "", "heads H", {{"loss", "L"}}).at(0);
  const std::vector<std::string> expected = {"step", "0",  "1",  "2",  "4",
                                             "8",    "16", "32", "64", "100"};
  EXPECT_EQ(table.columns, expected);
}

TEST_F(ExperimentTest, BrokenRowIsNamed) {
  make_folder(folder_);
  write_file(folder_ / "metrics.jsonl", "{\"step\": 0}\n{\"step\"\n");
  EXPECT_REFUSED(read_metrics(folder_), "expected a JSON object in line 2");
}

TEST(Result, WilsonInterval) {
  // Roots of (p - hits/n)^2 = z^2 p (1 - p) / n.
  for (const auto& [hits, trials] : {std::pair{0, 10}, {3, 10}, {10, 10}, {1990, 2000}}) {
    const double share = static_cast<double>(hits) / trials, z2 = 3.841458820694124;
    const auto [low, high] = wilson_interval(hits, trials);
    for (const double p : {low, high})
      EXPECT_NEAR((p - share) * (p - share), z2 * p * (1 - p) / trials, 1e-15);
    EXPECT_LT(low, high);
    EXPECT_TRUE(low <= share && share <= high) << hits;
  }
  EXPECT_EQ(error_of([] { wilson_interval(3, 2); }),
            "wilson_interval: expected 0 <= hits <= trials and trials >= 1, but got 3 and 2");
}

// ---- retrieval

using primal_dual::RetrievalHead;

/// A head away from the identity, and a batch on which no probability underflows.
struct RetrievalCase {
  explicit RetrievalCase(const primal_dual::RetrievalMethod& method) : head(method, 6) {
    const torch::NoGradGuard no_grad;
    auto generator = generator_of(3, "test");
    for (auto& parameter : head.parameters())
      parameter += 0.1 * torch::randn(parameter.sizes(), generator, torch::kDouble);
    batch = primal_dual::draw_batch(5, {.keys = 7, .width = 6}, {.offset = 0.5, .gain = 0.2},
                                    generator);
  }

  std::vector<at::Tensor> gradients(const at::Tensor& loss) {
    return torch::autograd::grad({loss}, head.parameters());
  }

  RetrievalHead head;
  primal_dual::RetrievalBatch batch;
};

TEST(Retrieval, TrainingLossIsThatOfTheOp) {
  for (const auto& method : primal_dual::retrieval_methods()) {
    RetrievalCase c(method);
    const auto logits = c.head.logits(c.batch.query, c.batch.keys);
    const auto log_p = c.head.probabilities(c.batch.query, c.batch.keys).log();
    EXPECT_LT((logits.log_softmax(1) - log_p).abs().max().item<double>(), 1e-11) << method.name;
    const auto by_formula = c.gradients(torch::cross_entropy_loss(logits, c.batch.target));
    const auto by_op = c.gradients(torch::nll_loss(log_p, c.batch.target));
    for (size_t i = 0; i < by_op.size(); ++i)
      EXPECT_LT((by_formula[i] - by_op[i]).abs().max().item<double>(), 1e-11) << method.name;
  }
}

TEST(Retrieval, HeadsLearnWhatTheirNameSays) {
  for (const auto& method : primal_dual::retrieval_methods()) {
    RetrievalCase c(method);
    const auto named = c.head.named_parameters();
    EXPECT_EQ(named.contains("beta"), method.learned_beta) << method.name;
    EXPECT_EQ(named.contains("control.query_bias"), method.control.query_bias) << method.name;
    EXPECT_EQ(method.name.find("learned") != std::string::npos, method.learned_beta);
    EXPECT_EQ(method.name.find("std") != std::string::npos, method.use_std);
  }
}

TEST(Retrieval, MeanOfTheKeysAloneChangesNothingAndTheOthersDo) {
  const auto& methods = primal_dual::retrieval_methods();
  const auto batch = RetrievalCase(methods.at(0)).batch;
  // By the formula: the op centres the keys itself.
  const auto softmax = RetrievalHead(methods.at(0), 6).logits(batch.query, batch.keys).softmax(1);
  for (const auto& method : methods) {
    if (method.differs_only_by_training()) continue;
    const auto p = RetrievalHead(method, 6).probabilities(batch.query, batch.keys);
    const auto difference = (p - softmax).abs().max().item<double>();
    if (method.name == "softmax" || method.name == "keys-centred")
      EXPECT_LT(difference, 1e-12) << method.name;
    else
      EXPECT_GT(difference, 1e-3) << method.name;
  }
}

TEST(Retrieval, NuisanceActsOnCommonRandomNumbers) {
  const auto draw = [](double offset, double gain) {
    auto generator = generator_of(1, "test");
    return primal_dual::draw_batch(4, {.keys = 5, .width = 3}, {offset, gain}, generator);
  };
  const auto clean = draw(0, 0), moved = draw(2, 0), stretched = draw(0, 1);
  const auto shift = moved.keys - clean.keys;
  EXPECT_TRUE(torch::allclose(shift, shift.select(1, 0).unsqueeze(1)));
  EXPECT_TRUE(torch::allclose(moved.query - clean.query, shift.select(1, 0)));
  EXPECT_NEAR(shift.select(1, 0).std().item<double>(), 2, 1.5);
  EXPECT_TRUE(
      torch::allclose(stretched.query / clean.query, (stretched.keys / clean.keys).select(1, 4)));
  EXPECT_TRUE(torch::equal(clean.target, moved.target));
}

// ---- svr

TEST(Svr, SolutionOfTwoPointsIsTheOneByHand) {
  // K = I, y = (1, -1), tube 0: c = (1, -1) inside the box, f = y; a box of 1/2 cuts both.
  const auto gram = torch::eye(2, torch::kDouble);
  const auto y = torch::tensor({1.0, -1.0}, torch::kDouble);
  for (const auto& [box, c] : {std::pair{10.0, 1.0}, {0.5, 0.5}}) {
    const primal_dual::SvrOptions options{.box = box, .tube = 0, .tolerance = 1e-10};
    const auto solution = primal_dual::solve_svr(gram, y, 2 * gram, options);
    EXPECT_TRUE(torch::allclose(solution.dual, c * y, 1e-9, 1e-9)) << solution.dual;
    EXPECT_NEAR(solution.bias, 0, 1e-9);
    EXPECT_TRUE(torch::allclose(solution.predictions, 2 * c * y, 1e-9, 1e-9));
    EXPECT_LT(primal_dual::svr_kkt_violation(gram, y, solution, options), 1e-9);
  }
}

TEST(Svr, KktViolationSeesEveryWayToBeWrong) {
  const auto gram = torch::eye(3, torch::kDouble);
  const auto y = torch::tensor({1.0, 0.3, -1.0}, torch::kDouble);
  const primal_dual::SvrOptions options{.box = 0.6, .tube = 0.2};
  const auto violation = [&](double c0, double c1) {
    const auto c = torch::tensor({c0, c1, -0.6}, torch::kDouble);
    return primal_dual::svr_kkt_violation(gram, y, {.dual = c, .bias = 0, .predictions = {}},
                                          options);
  };
  EXPECT_NEAR(violation(0.6, 0.1), 0, 1e-15);     // at the box, on the edge of the tube, at the box
  EXPECT_NEAR(violation(0.6, 0), 0.1, 1e-15);     // outside of the tube at no cost
  EXPECT_NEAR(violation(0.5, 0.1), 0.3, 1e-15);   // inside the box, off the edge
  EXPECT_NEAR(violation(-0.6, 0.1), 1.8, 1e-15);  // at the wrong end of the box
}

TEST_F(ExperimentTest, SvrEqualsAttentionToRounding) {
  const auto result = *run(find_experiment("primal-dual", "svr"));
  const double bounds[] = {1e-9, 1e-9, 0, 1e-6, 1e-5};  // LIBSVM's kernel is float32: KKT 1e-5
  for (const auto& row : result.at("tables").at(0).at("rows"))
    for (size_t i = 0; i < std::size(bounds); ++i)
      EXPECT_LE(row.at(i + 1).at("value").get<double>(), bounds[i]) << row;
}

}  // namespace
}  // namespace kktorch
