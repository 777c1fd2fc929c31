// The reader of digit images, and the images that an installed scikit-learn ships.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "train/common/error.h"
#include "train/data/datasets.h"
#include "train/data/site_packages.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;

class DigitsFile : public testing::Test {
 protected:
  void TearDown() override { fs::remove(file_); }

  Cases read(const std::string& text) const {
    std::ofstream(file_, std::ios::binary) << text;
    return read_cases(file_, DataKind::kImages);
  }
  std::string error_of(const std::string& text) const {
    try {
      read(text);
    } catch (const UserError& error) {
      return std::string(error.what()).substr(file_.string().size());
    }
    return "no error";
  }

  /// A line of 64 pixels 0, 1, 2, …, 16, 0, 1, … and what follows them.
  static std::string line(const std::string& end) {
    std::string text = "0";
    for (int i = 1; i < 64; ++i) text += fmt::format(",{}", i % 17);
    return text + end + "\n";
  }

  const fs::path file_ =
      fs::temp_directory_path() / ("kktorch_digits_" + std::to_string(getpid()) + ".csv");
};

TEST_F(DigitsFile, PixelsRowByRowAndDigits) {
  const auto cases = read(line(",3\r") + line(",9"));
  EXPECT_EQ(cases.examples.inputs.sizes(), (std::vector<int64_t>{2, 1, 8, 8}));
  EXPECT_EQ(cases.examples.inputs[0][0][2][1].item<float>(), 0);  // pixel 17
  EXPECT_EQ(cases.examples.inputs[1][0][1][7].item<float>(), 15);
  EXPECT_TRUE(torch::equal(cases.examples.labels, torch::tensor({3, 9})));
  EXPECT_FALSE(cases.examples.padding_mask.defined());
  const auto unlabelled = read(line(""));
  EXPECT_EQ(unlabelled.examples.size(), 1);
  EXPECT_FALSE(unlabelled.examples.labels.defined());
  EXPECT_TRUE(unlabelled.class_labels.empty());
}

TEST_F(DigitsFile, ErrorsNameTheLine) {
  EXPECT_EQ(error_of(line(",3") + line(",10")), ":2: expected an integer in 0..9, but got '10'");
  EXPECT_EQ(error_of("17" + line("").substr(1)), ":1: expected an integer in 0..16, but got '17'");
  EXPECT_EQ(error_of("0.5" + line("").substr(1)),
            ":1: expected an integer in 0..16, but got '0.5'");
  const std::string columns = "expected 64 pixels, and in all lines or in none a digit, but got ";
  EXPECT_EQ(error_of("1,2\n"), ":1: " + columns + "2 numbers");
  EXPECT_EQ(error_of(line(",3") + line("")), ":2: " + columns + "64 numbers");
  EXPECT_EQ(error_of("\n"), ": expected at least one image, but got none");
}

TEST_F(DigitsFile, MissingAndDamagedFiles) {
  EXPECT_THROW(read_cases("absent.csv", DataKind::kImages), UserError);
  EXPECT_THROW(read_cases(fs::temp_directory_path(), DataKind::kImages), UserError);
  // The first bytes of a gzip file.
  EXPECT_THROW(read(std::string("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\x48", 12)),
               UserError);
}

bool is_installed() {
  for (const auto& packages : site_packages())
    if (fs::exists(packages / "sklearn")) return true;
  return false;
}

TEST(Digits, HaveTheKnownCounts) {
  if (!is_installed()) GTEST_SKIP() << "scikit-learn is not installed";
  const auto data = load_dataset("digits");
  EXPECT_EQ(data.kind, DataKind::kImages);
  EXPECT_EQ(data.class_labels.size(), 10U);
  EXPECT_EQ(data.validation.size(), 0);
  EXPECT_EQ(data.train.size() + data.test.size(), 1797);
  const auto train = data.train.labels.bincount(), test = data.test.labels.bincount();
  // What the documentation of the data set says.
  EXPECT_TRUE(torch::equal(train + test,
                           torch::tensor({178, 182, 177, 183, 181, 182, 181, 179, 174, 180})));
  EXPECT_LE((test - (train + test) / 4.0).abs().max().item<double>(), 0.5);
  EXPECT_EQ(data.train.inputs.min().item<float>(), 0);
  EXPECT_EQ(data.train.inputs.max().item<float>(), 16);
  EXPECT_TRUE(torch::equal(data.test.labels, load_dataset("digits").test.labels));
}

// The golden sum of pixel * place tells a transposed or shifted image, and another split.
TEST(Digits, AreReadInOrder) {
  if (!is_installed()) GTEST_SKIP() << "scikit-learn is not installed";
  const auto data = load_dataset("digits");
  const auto weights = torch::arange(64, torch::kDouble);
  const auto moment = [&](const Examples& part) {
    return part.inputs.flatten(1).to(torch::kDouble).matmul(weights).sum().item<double>();
  };
  EXPECT_EQ(moment(data.train) + moment(data.test), 17660653);
  EXPECT_EQ(moment(data.test), 4427778);
}

TEST(Digits, RefuseSizes) { EXPECT_THROW(load_dataset("digits", {.train_size = 10}), UserError); }

}  // namespace
}  // namespace kktorch
