// The .ts reader, rule by rule and error by error, and the data sets that an installed aeon ships.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/cpp/refusal.h"
#include "train/common/error.h"
#include "train/data/datasets.h"
#include "train/data/ts_datasets.h"
#include "train/data/ts_file.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;
using test::error_of;

/// A folder of its own for every test.
class TsFileTest : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& text, const std::string& name = "Toy_TRAIN.ts") const {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return folder_ / name;
  }
  TsFile read(const std::string& text) const { return read_ts_file(write(text)); }

  const fs::path folder_ = fs::temp_directory_path() / ("kktorch_ts_" + std::to_string(getpid()));
};

void expect_equal(const at::Tensor& actual, const at::Tensor& expected) {
  EXPECT_TRUE(torch::equal(actual, expected)) << actual << "\nexpected\n" << expected;
}

const std::string kLabelled = "@classlabel true a b\n@data\n";

TEST_F(TsFileTest, CasesOfDifferentLengthArePadded) {
  const auto file = read(
      "# a comment\n"
      "@problemName Toy\n@timeStamps false\n@missing false\n@univariate false\n@dimensions 2\n"
      "@equalLength false\n@classLabel true a b\n@data\n"
      "1,2,3:10,20,30:b\n"
      "\n# between the cases\n"
      " 4 : 40 : a \n");
  EXPECT_EQ(file.problem_name, "Toy");
  EXPECT_EQ(file.class_labels, (std::vector<std::string>{"a", "b"}));
  expect_equal(file.x,
               torch::tensor({1., 10., 2., 20., 3., 30., 4., 40., 0., 0., 0., 0.}, torch::kFloat)
                   .view({2, 3, 2}));
  expect_equal(file.padding_mask, torch::tensor({0, 0, 0, 0, 1, 1}).view({2, 3}).to(torch::kBool));
  expect_equal(file.lengths, torch::tensor({3, 1}, torch::kLong));
  expect_equal(file.labels, torch::tensor({1, 0}, torch::kLong));
  EXPECT_FALSE(file.targets.defined());
}

TEST_F(TsFileTest, LineEndsKeysAndNumbersAreLenient) {
  const auto file = read(
      "@PROBLEMNAME x\r\n@CLASSLABEL TRUE a\tb\r\n@DATA\r\n+1.5,-2e-1,.5,1e-400:a\r\n1,2,3,4:b");
  expect_equal(file.x.squeeze(2),
               torch::tensor({1.5, -0.2, 0.5, 0., 1., 2., 3., 4.}, torch::kFloat).view({2, 4}));
  expect_equal(file.labels, torch::tensor({0, 1}, torch::kLong));
}

TEST_F(TsFileTest, LabelsFollowTheHeaderNotTheAlphabet) {
  expect_equal(read("@classlabel true 1 10 2\n@data\n0:2\n0:10\n0:1\n").labels,
               torch::tensor({2, 1, 0}, torch::kLong));
}

TEST_F(TsFileTest, MissingValuesAreInterpolatedInTime) {
  const auto file = read(kLabelled + "?,1,NaN,nan,4,?:?,?,?,?,?,?:a\n");
  expect_equal(
      file.x.squeeze(0).t(),
      torch::tensor({1., 1., 2., 3., 4., 4., 0., 0., 0., 0., 0., 0.}, torch::kFloat).view({2, 6}));
  EXPECT_FALSE(file.padding_mask.any().item<bool>());
}

TEST_F(TsFileTest, TargetsAndFilesWithoutLabels) {
  const auto regression = read("@targetlabel true\n@data\n1,2:0.25\n3:-4\n");
  expect_equal(regression.targets, torch::tensor({0.25, -4.}, torch::kFloat));
  EXPECT_FALSE(regression.labels.defined());

  const auto unlabelled = read("@classlabel false\n@data\n1,2:3,4\n");
  EXPECT_EQ(unlabelled.x.size(2), 2);
  EXPECT_FALSE(unlabelled.labels.defined() || unlabelled.targets.defined());
}

TEST_F(TsFileTest, PaddingToALength) {
  const auto file = pad_to(read(kLabelled + "1,2:a\n"), 4);
  expect_equal(file.x.view(-1), torch::tensor({1., 2., 0., 0.}, torch::kFloat));
  expect_equal(file.padding_mask.view(-1), torch::tensor({0, 0, 1, 1}).to(torch::kBool));
  expect_equal(file.lengths, torch::tensor({2}, torch::kLong));
  EXPECT_NE(
      error_of([&] { pad_to(file, 3); }).find("expected series of at most 3 steps, but got 4"),
      std::string::npos);
}

TEST_F(TsFileTest, ErrorsNameFileAndLine) {
  const struct {
    std::string text;
    int line;
    const char* message;
  } cases[] = {
      {kLabelled + "1,x:a\n", 3, "expected a number, NaN or ?, but got 'x'"},
      {kLabelled + "1,:a\n", 3, "expected a number, NaN or ?, but got ''"},
      {kLabelled + "1,inf:a\n", 3, "expected a number, NaN or ?, but got 'inf'"},
      {kLabelled + "1,1e400:a\n", 3, "expected a number, NaN or ?, but got '1e400'"},
      {kLabelled + "1,1e39:a\n", 3, "expected a number, NaN or ?, but got '1e39'"},
      {kLabelled + "+-1:a\n", 3, "expected a number, NaN or ?, but got '+-1'"},
      {kLabelled + "1,2:a\n\n1,2:c\n", 5, "expected one of the class labels a, b, but got 'c'"},
      {kLabelled + "1,2\n", 3, "expected channels and a label separated by ':', but got '1,2'"},
      {kLabelled + "1,2:3:a\n", 3, "expected channels of equal length, but got 2 and 1"},
      {kLabelled + "1:2:a\n3:a\n", 4, "expected 2 channels, but got 1"},
      {"@dimensions 3\n" + kLabelled + "1:2:a\n", 4, "expected 3 channels, but got 2"},
      {"@univariate true\n" + kLabelled + "1:2:a\n", 4, "expected 1 channels, but got 2"},
      {"@equallength true\n" + kLabelled + "1,2:a\n1:b\n", 5,
       "expected 2 steps (@equallength true), but got 1"},
      {"@equallength true\n@serieslength 3\n" + kLabelled + "1,2:a\n", 5,
       "expected 3 steps (@equallength true), but got 2"},
      {"@timestamps true\n" + kLabelled, 1, "time stamps are not implemented"},
      {"@missing maybe\n" + kLabelled, 1, "expected @missing true or false, but got 'maybe'"},
      {"@dimensions two\n" + kLabelled, 1,
       "expected @dimensions with a positive integer, but got 'two'"},
      {"@serieslength 0\n" + kLabelled, 1,
       "expected @serieslength with a positive integer, but got '0'"},
      {"@classlabel true\n@data\n", 1,
       "expected @classlabel true <label> <label> …, but got no label"},
      {"@classlabel true a a\n@data\n", 1, "expected distinct class labels, but got 'a' twice"},
      {"@classlabel true a\n@targetlabel true\n@data\n", 3,
       "expected one of @classlabel true and @targetlabel true"},
      {"@targetlabel true\n@data\n1:?\n", 3, "expected a number as target, but got '?'"},
      {"@color red\n" + kLabelled, 1, "expected a key of the .ts format, but got '@color'"},
      {"1,2:a\n", 1, "expected a comment, a line @key or @data, but got '1,2:a'"},
  };
  for (const auto& [text, line, message] : cases) {
    const auto error = error_of([&, &t = text] { read(t); });
    EXPECT_EQ(error.find((folder_ / "Toy_TRAIN.ts").string() + ":" + std::to_string(line) + ": "),
              0U)
        << error;
    EXPECT_NE(error.find(message), std::string::npos) << error << "\nexpected " << message;
  }
}

TEST_F(TsFileTest, FilesThatHoldNoData) {
  EXPECT_NE(
      error_of([&] { read("@classlabel true a\n"); }).find("expected a line @data, but got none"),
      std::string::npos);
  EXPECT_NE(error_of([&] { read(kLabelled); }).find("expected at least one case after @data"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              read_ts_file(folder_ / "absent.ts");
            }).find("absent.ts: expected a file, but it does not exist"),
            std::string::npos);
  EXPECT_NE(error_of([&] { read_ts_file(folder_); }).find("expected a file, but got a folder"),
            std::string::npos);
}

TEST_F(TsFileTest, DatasetsByFolderFileAndName) {
  write(kLabelled + "1,2:a\n", "Set/Toy_TRAIN.ts");
  write(kLabelled + "1,2,3:b\n4:a\n", "Set/Toy_TEST.ts");
  for (const auto& data :
       {(folder_ / "Set").string(), (folder_ / "Set/Toy_TRAIN.ts").string(), std::string("Toy")}) {
    const auto dataset = load_dataset(data, {.data_dir = folder_});
    EXPECT_EQ(dataset.name, "Toy");
    EXPECT_EQ(dataset.train.inputs.sizes(),
              (std::vector<int64_t>{1, 3, 1}));  // padded to the longest of both files
    EXPECT_EQ(dataset.test.inputs.sizes(), (std::vector<int64_t>{2, 3, 1}));
  }
  setenv("KKTORCH_DATA", folder_.c_str(), 1);
  EXPECT_EQ(load_dataset("Toy").origin.at("train_file"), (folder_ / "Set/Toy_TRAIN.ts").string());
  unsetenv("KKTORCH_DATA");
}

TEST_F(TsFileTest, DatasetErrors) {
  write(kLabelled + "1:a\n", "Set/Toy_TRAIN.ts");
  for (const auto& data : {std::string("Toy"), (folder_ / "Set").string()})
    EXPECT_EQ(error_of([&] { load_dataset(data, {.data_dir = folder_}); }),
              (folder_ / "Set/Toy_TEST.ts").string() +
                  ": expected the pair Toy_TRAIN.ts and Toy_TEST.ts, but this file does not exist");
  write("@classlabel true b a\n@data\n1:a\n", "Set/Toy_TEST.ts");
  EXPECT_NE(error_of([&] {
              load_dataset("Toy", {.data_dir = folder_, .train_size = 1});
            }).find("Toy: expected the sizes of the data set as they are"),
            std::string::npos);
  const auto known = error_of([&] { load_dataset("Nowhere", {.data_dir = folder_}); });
  EXPECT_NE(known.find("but got 'Nowhere'"), std::string::npos) << known;
  EXPECT_NE(known.find("Toy"), std::string::npos) << known;

  EXPECT_NE(error_of([&] {
              load_dataset("Toy", {.data_dir = folder_});
            }).find("expected the class labels of the training file (a b), but got (b a)"),
            std::string::npos);
  write(kLabelled + "1:2:a\n", "Set/Toy_TEST.ts");
  EXPECT_NE(error_of([&] {
              load_dataset("Toy", {.data_dir = folder_});
            }).find("expected 1 channels as in the training file, but got 2"),
            std::string::npos);
  write("@targetlabel true\n@data\n1:2\n", "Set/Toy_TRAIN.ts");
  EXPECT_NE(error_of([&] {
              load_dataset("Toy", {.data_dir = folder_});
            }).find("expected a data set with class labels"),
            std::string::npos);
  EXPECT_NE(
      error_of([&] { load_dataset(folder_.string()); }).find("expected a folder with one pair"),
      std::string::npos);
  EXPECT_NE(error_of([&] {
              load_dataset("Toy.ts");
            }).find("expected a file <NAME>_TRAIN.ts with <NAME>_TEST.ts beside it"),
            std::string::npos);
}

struct Shipped {
  std::string name;
  int64_t train, test, channels, classes;
  int64_t shortest_train, longest_train, shortest_test, longest_test;
};

class ShippedDatasets : public testing::TestWithParam<Shipped> {};

TEST_P(ShippedDatasets, HaveTheKnownCountsAndLengths) {
  const auto& known = GetParam();
  const auto names = ts_dataset_names({});
  if (std::find(names.begin(), names.end(), known.name) == names.end())
    GTEST_SKIP() << known.name << " is not installed";
  const auto data = load_dataset(known.name);
  EXPECT_EQ(data.kind, DataKind::kSeries);
  EXPECT_EQ(data.train.size(), known.train);
  EXPECT_EQ(data.test.size(), known.test);
  EXPECT_EQ(data.train.inputs.size(2), known.channels);
  EXPECT_EQ(std::ssize(data.class_labels), known.classes);
  const auto train = data.train.padding_mask.logical_not().sum(1);
  const auto test = data.test.padding_mask.logical_not().sum(1);
  EXPECT_EQ(train.min().item<int64_t>(), known.shortest_train);
  EXPECT_EQ(train.max().item<int64_t>(), known.longest_train);
  EXPECT_EQ(test.min().item<int64_t>(), known.shortest_test);
  EXPECT_EQ(test.max().item<int64_t>(), known.longest_test);
  EXPECT_EQ(data.train.inputs.size(1), std::max(known.longest_train, known.longest_test));
  EXPECT_TRUE(data.train.inputs.isfinite().all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(
    Packages, ShippedDatasets,
    testing::Values(Shipped{"JapaneseVowels", 270, 370, 12, 9, 7, 26, 7, 29},
                    Shipped{"BasicMotions", 40, 40, 6, 4, 100, 100, 100, 100},
                    Shipped{"ArrowHead", 36, 175, 1, 3, 251, 251, 251, 251},
                    Shipped{"GunPoint", 50, 150, 1, 2, 150, 150, 150, 150},
                    Shipped{"ItalyPowerDemand", 67, 1029, 1, 2, 24, 24, 24, 24},
                    Shipped{"OSULeaf", 200, 242, 1, 6, 427, 427, 427, 427},
                    Shipped{"ACSF1", 100, 100, 1, 10, 1460, 1460, 1460, 1460},
                    Shipped{"PickupGestureWiimoteZ", 50, 50, 1, 10, 29, 361, 37, 324},
                    Shipped{"PLAID", 537, 537, 1, 11, 100, 1344, 134, 1000}),
    [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace kktorch
