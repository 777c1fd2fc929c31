// The ListOps generator against an evaluator of its own, and the reader of expressions.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "train/common/error.h"
#include "train/data/datasets.h"
#include "train/data/listops.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;

ListOpsOptions tiny() {
  return {.max_depth = 4,
          .max_args = 5,
          .min_length = 3,
          .max_length = 40,
          .train_size = 3000,
          .validation_size = 300,
          .test_size = 200,
          .seed = 7};
}

/// The tokens of an example, without padding.
std::vector<int64_t> tokens_of(const Examples& examples, int64_t row) {
  const auto padded = examples.inputs[row].to(torch::kLong);
  const auto* data = padded.data_ptr<int64_t>();
  std::vector<int64_t> tokens(data, data + padded.size(0));
  const auto end = std::find(tokens.begin(), tokens.end(), 0);
  EXPECT_TRUE(std::all_of(end, tokens.end(), [](auto token) { return token == 0; }));
  tokens.erase(end, tokens.end());
  return tokens;
}

/// Parses and evaluates an expression by the rules of the task, from its symbols.
class Evaluator {
 public:
  explicit Evaluator(std::vector<int64_t> tokens) : tokens_(std::move(tokens)) {}

  int64_t value() {
    const auto result = expression(1);
    EXPECT_EQ(place_, tokens_.size()) << "symbols behind the end";
    return result;
  }

  int64_t depth = 0;
  size_t fewest_arguments = 100, most_arguments = 0;

 private:
  int64_t expression(int64_t level) {
    depth = std::max(depth, level);
    const std::string symbol(kListOpsSymbols.at(static_cast<size_t>(tokens_.at(place_++))));
    if (symbol.front() != '[') return std::stoll(symbol);
    std::vector<int64_t> list;
    while (kListOpsSymbols.at(static_cast<size_t>(tokens_.at(place_))) != "]")
      list.push_back(expression(level + 1));
    ++place_;
    fewest_arguments = std::min(fewest_arguments, list.size());
    most_arguments = std::max(most_arguments, list.size());
    return value_of(symbol, list);
  }

  static int64_t value_of(const std::string& symbol, std::vector<int64_t> list) {
    std::sort(list.begin(), list.end());
    if (symbol == "[MAX") return list.back();
    if (symbol == "[MIN") return list.front();
    if (symbol == "[SM") {
      int64_t sum = 0;
      for (const auto digit : list) sum += digit;
      return sum % 10;
    }
    EXPECT_EQ(symbol, "[MED");
    // The mean of the two in the middle, or twice the same one; integer division rounds down.
    return (list[(list.size() - 1) / 2] + list[list.size() / 2]) / 2;
  }

  std::vector<int64_t> tokens_;
  size_t place_ = 0;
};

TEST(ListOps, LabelsAreTheValues) {
  const auto data = generate_listops("tiny", tiny());
  EXPECT_EQ(data.kind, DataKind::kTokens);
  EXPECT_EQ(data.vocabulary, 16);
  EXPECT_EQ(data.class_labels,
            (std::vector<std::string>{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}));
  int64_t depth = 0;
  size_t fewest = 100, most = 0;
  std::set<int64_t> used, values;
  for (const auto* part : {&data.train, &data.validation, &data.test}) {
    for (int64_t row = 0; row < part->size(); ++row) {
      const auto tokens = tokens_of(*part, row);
      ASSERT_GT(tokens.size(), 3U);
      ASSERT_LT(tokens.size(), 40U);
      ASSERT_EQ(part->padding_mask[row].sum().item<int64_t>(),
                part->inputs.size(1) - static_cast<int64_t>(tokens.size()));
      used.insert(tokens.begin(), tokens.end());
      Evaluator evaluator(tokens);
      const auto value = evaluator.value();
      ASSERT_EQ(part->labels[row].item<int64_t>(), value);
      values.insert(value);
      depth = std::max(depth, evaluator.depth);
      fewest = std::min(fewest, evaluator.fewest_arguments);
      most = std::max(most, evaluator.most_arguments);
    }
  }
  // 3500 expressions reach every bound and use every symbol but the padding.
  EXPECT_EQ(depth, 4);
  EXPECT_EQ(fewest, 2U);
  EXPECT_EQ(most, 5U);
  EXPECT_EQ(used.size(), 15U);
  EXPECT_EQ(values.size(), 10U);
}

TEST(ListOps, SizesAndNoExpressionTwice) {
  const auto data = generate_listops("tiny", tiny());
  EXPECT_EQ(data.train.size(), 3000);
  EXPECT_EQ(data.validation.size(), 300);
  EXPECT_EQ(data.test.size(), 200);
  std::set<std::vector<int64_t>> different;
  for (const auto* part : {&data.train, &data.validation, &data.test})
    for (int64_t row = 0; row < part->size(); ++row) different.insert(tokens_of(*part, row));
  EXPECT_EQ(different.size(), 3500U);
}

// With one level below the root, arguments are digits: number, operator and digits are uniform.
TEST(ListOps, DrawsAreUniform) {
  const auto data = generate_listops("flat", {.max_depth = 2,
                                              .max_args = 10,
                                              .min_length = 6,
                                              .max_length = 13,
                                              .train_size = 9000,
                                              .validation_size = 0,
                                              .test_size = 0});
  const auto lengths = data.train.padding_mask.logical_not().sum(1);
  // 5 … 10 arguments, 7 … 12 tokens. Chi-square, 0.999 quantiles at 5, 3 and 9 degrees of freedom.
  const auto chi_square = [](const torch::Tensor& counts) {
    const auto expected = counts.sum().item<double>() / static_cast<double>(counts.numel());
    return (counts.to(torch::kDouble) - expected).square().sum().item<double>() / expected;
  };
  EXPECT_LT(chi_square(lengths.bincount({}, 13).slice(0, 7)), 20.5);
  EXPECT_LT(
      chi_square(data.train.inputs.select(1, 0).to(torch::kLong).bincount({}, 15).slice(0, 11)),
      16.3);
  EXPECT_LT(
      chi_square(data.train.inputs.select(1, 1).to(torch::kLong).bincount({}, 11).slice(0, 1)),
      27.9);
}

// Two arguments of which at least one is a list: both with probability (1/16) / (7/16).
TEST(ListOps, OneArgumentInFourIsAList) {
  const auto data = generate_listops("two", {.max_depth = 3,
                                             .max_args = 2,
                                             .min_length = 6,
                                             .max_length = 11,
                                             .train_size = 2000,
                                             .validation_size = 0,
                                             .test_size = 0});
  const auto lengths = data.train.padding_mask.logical_not().sum(1);  // 7: one list, 10: two
  EXPECT_NEAR(lengths.eq(10).to(torch::kDouble).mean().item<double>(), 1.0 / 7, 0.04);  // 5 sd
}

TEST(ListOps, DependsOnTheSeedAlone) {
  const auto first = generate_listops("tiny", tiny()), second = generate_listops("tiny", tiny());
  EXPECT_TRUE(torch::equal(first.train.inputs, second.train.inputs));
  EXPECT_EQ(first.origin, second.origin);
  auto other = tiny();
  other.seed = 8;
  EXPECT_NE(generate_listops("tiny", other).origin.at("checksum"), first.origin.at("checksum"));
  auto smaller = tiny();
  smaller.train_size = 10;
  const auto few = generate_listops("tiny", smaller);
  EXPECT_TRUE(torch::equal(few.test.inputs, first.test.inputs));
  EXPECT_TRUE(torch::equal(few.train.inputs, first.train.inputs.slice(0, 0, 10)));
}

TEST(ListOps, TooFewExpressions) {
  try {
    generate_listops("digits",
                     {.max_depth = 2, .min_length = 0, .max_length = 2, .train_size = 11});
    FAIL() << "no error";
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(),
                 "ListOps: expected 2000 test expressions with 0 < length < 2, but found only 10");
  }
}

TEST(ListOps, ThePresets) {
  const auto full = *listops_preset("ListOps"), small = *listops_preset("ListOps-small");
  EXPECT_EQ(full.min_length, 500);
  EXPECT_EQ(full.max_length, 2000);
  EXPECT_EQ(full.train_size, 96000);
  EXPECT_EQ(small.max_depth, 10);
  EXPECT_EQ(small.max_args, 10);
  EXPECT_EQ(small.validation_size, 2000);
  EXPECT_FALSE(listops_preset("listops"));

  const auto data = load_dataset("ListOps-small", {.train_size = 500, .test_size = 100});
  EXPECT_EQ(data.name, "ListOps-small");
  EXPECT_EQ(data.train.size(), 500);
  EXPECT_EQ(data.validation.size(), 100);
  const auto lengths = data.train.padding_mask.logical_not().sum(1);
  EXPECT_GT(lengths.min().item<int64_t>(), 100);
  EXPECT_LT(lengths.max().item<int64_t>(), 300);
  EXPECT_EQ(data.train.inputs.size(1), 299);
  // Whoever changes the generator changes what published numbers were measured on.
  EXPECT_EQ(data.origin.at("checksum"), "1ff5a508f5e04c3f");
  EXPECT_EQ(data.origin.at("seed"), 0);
}

// ---- files of expressions

class ListOpsFile : public testing::Test {
 protected:
  void TearDown() override { fs::remove(file_); }

  Cases read(const std::string& text) const {
    std::ofstream(file_) << text;
    return read_cases(file_, DataKind::kTokens);
  }
  std::string error_of(const std::string& text) const {
    try {
      read(text);
    } catch (const UserError& error) {
      return std::string(error.what()).substr(file_.string().size());
    }
    return "no error";
  }

  const fs::path file_ =
      fs::temp_directory_path() / ("kktorch_listops_" + std::to_string(getpid()) + ".txt");
};

TEST_F(ListOpsFile, TokensAndValues) {
  const auto cases = read("[MAX 2 9 [MIN 4 7 ] 0 ]\t9\r\n\n5\t5\n");
  EXPECT_TRUE(
      torch::equal(cases.examples.inputs.to(torch::kLong),
                   torch::tensor({{11, 3, 10, 12, 5, 8, 15, 1, 15}, {6, 0, 0, 0, 0, 0, 0, 0, 0}})));
  EXPECT_TRUE(torch::equal(cases.examples.padding_mask.sum(1), torch::tensor({0, 8})));
  EXPECT_TRUE(torch::equal(cases.examples.labels, torch::tensor({9, 5})));
  EXPECT_EQ(cases.class_labels.size(), 10U);
  const auto unlabelled = read("[SM 1 2 ]");
  EXPECT_FALSE(unlabelled.examples.labels.defined());
  EXPECT_TRUE(unlabelled.class_labels.empty());
}

TEST_F(ListOpsFile, ErrorsNameTheLine) {
  EXPECT_EQ(error_of("5\n[AVG 1 2 ]\n"), ":2: expected a digit, an operator or ], but got '[AVG'");
  EXPECT_EQ(error_of("5\t5\n6\n"),
            ":2: expected a value in all lines or in none, but got 1 fields");
  EXPECT_EQ(error_of("5\tx\n"), ":1: expected a digit, an operator or ], but got 'x'");
  EXPECT_EQ(error_of("5\t]\n"), ":1: expected a digit as value, but got ']'");
  EXPECT_EQ(error_of("\n"), ": expected at least one expression, but got none");
}

}  // namespace
}  // namespace kktorch
