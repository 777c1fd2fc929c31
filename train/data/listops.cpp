#include "train/data/listops.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <unordered_set>

#include "train/common/error.h"
#include "train/common/files.h"
#include "train/common/hash.h"
#include "train/common/text.h"
#include "train/loop/seed_stream.h"

namespace kktorch {
namespace {

// Tokens, as in kListOpsSymbols.
constexpr char kPad = 0, kZero = 1, kMax = 11, kMin = 12, kMed = 13, kSum = 14, kClose = 15;
constexpr uint64_t kDigits = 10, kOperators = 4;
// A tree of the wanted length is found within a few hundred attempts: after so many in vain there
// is none left.
constexpr int64_t kLargestNumberOfFailures = 1'000'000;

int64_t median(std::vector<int64_t> values) {
  std::sort(values.begin(), values.end());
  const auto middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

int64_t value_of(char operation, const std::vector<int64_t>& arguments) {
  switch (operation) {
    case kMax:
      return *std::max_element(arguments.begin(), arguments.end());
    case kMin:
      return *std::min_element(arguments.begin(), arguments.end());
    case kMed:
      return median(arguments);
    default:
      return std::accumulate(arguments.begin(), arguments.end(), int64_t{0}) % 10;
  }
}

struct Expression {
  std::string tokens;
  int64_t value = 0;
};

/// The trees of one random stream.
class TreeSampler {
 public:
  TreeSampler(const ListOpsOptions& options, std::string_view split)
      : options_(options), random_(options.seed, fmt::format("ListOps {}", split)) {}

  /// The next tree, of any length below max_length; a longer one ends unfinished.
  Expression next() {
    tokens_.clear();
    const auto value = tree(1);
    return {tokens_, value};
  }

 private:
  bool too_long() const { return std::ssize(tokens_) >= options_.max_length; }

  /// Appends a tree; returns its value.
  int64_t tree(int64_t depth) {
    const bool inner = depth < options_.max_depth && random_.below(4) == 0;
    if (!inner) {
      const auto digit = static_cast<int64_t>(random_.below(kDigits));
      tokens_.push_back(static_cast<char>(kZero + digit));
      return digit;
    }
    const auto operation = static_cast<char>(kMax + random_.below(kOperators));
    const auto count = 2 + random_.below(static_cast<uint64_t>(options_.max_args) - 1);
    tokens_.push_back(operation);
    std::vector<int64_t> arguments;
    do {
      arguments.push_back(tree(depth + 1));
    } while (arguments.size() < count && !too_long());
    tokens_.push_back(kClose);
    return value_of(operation, arguments);
  }

  ListOpsOptions options_;
  SeedStream random_;
  std::string tokens_;
};

using Seen = std::unordered_set<std::string>;

/// `count` expressions that are not in `seen`; they join it.
std::vector<Expression> draw(const ListOpsOptions& options, std::string_view split, int64_t count,
                             Seen& seen) {
  TreeSampler sampler(options, split);
  std::vector<Expression> expressions;
  for (int64_t failures = 0; std::ssize(expressions) < count;) {
    auto expression = sampler.next();
    const auto length = std::ssize(expression.tokens);
    if (options.min_length < length && length < options.max_length &&
        seen.insert(expression.tokens).second) {
      expressions.push_back(std::move(expression));
      failures = 0;
    } else if (++failures == kLargestNumberOfFailures) {
      fail("ListOps: expected {} {} expressions with {} < length < {}, but found only {}", count,
           split, options.min_length, options.max_length, expressions.size());
    }
  }
  return expressions;
}

Examples to_examples(const std::vector<Expression>& expressions, int64_t length) {
  const auto n = std::ssize(expressions);
  Examples examples;
  examples.inputs = at::zeros({n, length}, at::kByte);
  examples.labels = at::zeros({n}, at::kLong);
  auto* row = examples.inputs.mutable_data_ptr<uint8_t>();
  auto* label = examples.labels.mutable_data_ptr<int64_t>();
  for (const auto& [tokens, value] : expressions) {
    std::memcpy(row, tokens.data(), tokens.size());
    row += length;
    *label++ = value;
  }
  examples.padding_mask = examples.inputs.eq(kPad);
  return examples;
}

std::vector<std::string> value_names() {
  return {kListOpsSymbols.begin() + kZero, kListOpsSymbols.begin() + kZero + kDigits};
}

nlohmann::json origin_of(const ListOpsOptions& options, uint64_t checksum) {
  return {{"generator", "ListOps"},
          {"max_depth", options.max_depth},
          {"max_args", options.max_args},
          {"min_length", options.min_length},
          {"max_length", options.max_length},
          {"seed", options.seed},
          {"checksum", fmt::format("{:016x}", checksum)}};
}

Expression parse_line(std::string_view line, const std::string& place) {
  Expression expression;
  for (const auto symbol : split(line, ' ')) {
    if (symbol.empty()) continue;
    const auto found = std::find(kListOpsSymbols.begin() + kZero, kListOpsSymbols.end(), symbol);
    if (found == kListOpsSymbols.end())
      fail("{}: expected a digit, an operator or ], but got '{}'", place, symbol);
    expression.tokens.push_back(static_cast<char>(found - kListOpsSymbols.begin()));
  }
  return expression;
}

}  // namespace

std::optional<ListOpsOptions> listops_preset(const std::string& name) {
  if (name == "ListOps") return ListOpsOptions{};
  if (name == "ListOps-small")
    return ListOpsOptions{.min_length = 100, .max_length = 300, .train_size = 20000};
  return {};
}

Dataset generate_listops(const std::string& name, const ListOpsOptions& options) {
  if (options.max_args < 2) fail("ListOps: expected max_args >= 2, but got {}", options.max_args);
  Seen seen;
  uint64_t checksum = fnv1a("");
  const auto split = [&](std::string_view split_name, int64_t size) {
    const auto expressions = draw(options, split_name, size, seen);
    for (const auto& [tokens, value] : expressions)
      checksum = fnv1a(std::string_view(&kPad, 1), fnv1a(tokens, checksum));
    return to_examples(expressions, options.max_length - 1);
  };
  // The test examples first: the size of the training set does not change them.
  auto test = split("test", options.test_size);
  auto validation = split("validation", options.validation_size);
  auto train = split("train", options.train_size);
  return {.name = name,
          .kind = DataKind::kTokens,
          .class_labels = value_names(),
          .vocabulary = std::ssize(kListOpsSymbols),
          .train = std::move(train),
          .test = std::move(test),
          .validation = std::move(validation),
          .origin = origin_of(options, checksum)};
}

Cases read_listops(const std::filesystem::path& file) {
  const auto content = read_file(file);
  std::vector<Expression> expressions;
  std::optional<bool> labelled;
  size_t longest = 0;
  int64_t line_number = 0;
  for (const auto line : split(content, '\n')) {
    const auto place = fmt::format("{}:{}", file.string(), ++line_number);
    if (line.empty()) continue;
    const auto fields = split(line, '\t');
    auto& expression = expressions.emplace_back(parse_line(fields.front(), place));
    if (!labelled) labelled = fields.size() == 2;
    if (fields.size() != (*labelled ? 2U : 1U))
      fail("{}: expected a value in all lines or in none, but got {} fields", place, fields.size());
    if (*labelled) {
      const auto value = parse_line(fields.back(), place).tokens;
      if (value.size() != 1 || value.front() >= kMax)
        fail("{}: expected a digit as value, but got '{}'", place, fields.back());
      expression.value = value.front() - kZero;
    }
    longest = std::max(longest, expression.tokens.size());
  }
  if (expressions.empty())
    fail("{}: expected at least one expression, but got none", file.string());
  Cases cases{to_examples(expressions, static_cast<int64_t>(longest)), value_names()};
  if (!*labelled) cases = {{cases.examples.inputs, cases.examples.padding_mask, {}}, {}};
  return cases;
}

}  // namespace kktorch
