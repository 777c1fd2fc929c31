// kktorch predict: class and probabilities of every case in a file.
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "train/cli/command.h"
#include "train/common/error.h"
#include "train/common/files.h"
#include "train/data/datasets.h"
#include "train/loop/table.h"
#include "train/runs/run.h"

namespace kktorch::cli {
namespace {

constexpr auto kFooter = R"(Example:
  kktorch predict --model runs/JapaneseVowels/bn-seed1 --input My_TEST.ts --out predictions.csv

Input files: time series in the .ts format; images as CSV, plain or gzip, the 64
pixels of one image a line and, if known, its digit; ListOps expressions as text,
one a line, such as [MAX 2 9 [MIN 4 7 ] 0 ], and, if known, a tab and the value.)";

struct Arguments {
  std::filesystem::path model, input, out;
};

struct Prediction {
  std::vector<std::string> class_labels;
  at::Tensor probabilities;             // [n, K]
  std::vector<std::string> true_label;  // empty without labels
  std::vector<std::string> predicted;
};

std::vector<std::string> names_of(const at::Tensor& labels, const std::vector<std::string>& names) {
  std::vector<std::string> result;
  for (int64_t i = 0; i < labels.size(0); ++i)
    result.push_back(names.at(static_cast<size_t>(labels[i].item<int64_t>())));
  return result;
}

/// The labels of the file are in its own order, which may not be that of the training file.
void check_labels(const Cases& cases, const DataConfig& data, const std::filesystem::path& file) {
  for (const auto& label : cases.class_labels)
    if (std::find(data.class_labels.begin(), data.class_labels.end(), label) ==
        data.class_labels.end())
      fail("{}: expected class labels of {} ({}), but got '{}'", file.string(), data.name,
           fmt::join(data.class_labels, " "), label);
}

/// Errors of the model, which knows what it takes, name the file.
at::Tensor logits_of(const TrainedModel& run, const Cases& cases,
                     const std::filesystem::path& file) {
  try {
    return evaluate_logits(module_of(run.model), forward_of(run.model), cases.examples);
  } catch (const c10::Error& error) {
    fail("{}: {}", file.string(), error.what_without_backtrace());
  }
}

Prediction predict(const TrainedModel& run, const Arguments& args) {
  const auto& names = run.config.data.class_labels;
  const auto cases = read_cases(args.input, kind_of(run.config.model));
  check_labels(cases, run.config.data, args.input);
  const auto logits = logits_of(run, cases, args.input);
  Prediction result{names, logits.softmax(1), {}, names_of(logits.argmax(1), names)};
  if (cases.examples.labels.defined())
    result.true_label = names_of(cases.examples.labels, cases.class_labels);
  return result;
}

std::vector<std::vector<std::string>> rows_of(const Prediction& prediction, bool full_precision) {
  std::vector<std::string> header = {"case", "predicted"};
  if (!prediction.true_label.empty()) header.emplace_back("true");
  for (const auto& label : prediction.class_labels) header.push_back(fmt::format("p({})", label));
  std::vector<std::vector<std::string>> rows = {header};
  for (size_t i = 0; i < prediction.predicted.size(); ++i) {
    auto& row = rows.emplace_back(std::vector{fmt::format("{}", i + 1), prediction.predicted[i]});
    if (!prediction.true_label.empty()) row.push_back(prediction.true_label[i]);
    for (size_t k = 0; k < prediction.class_labels.size(); ++k) {
      const auto p =
          prediction.probabilities[static_cast<int64_t>(i)][static_cast<int64_t>(k)].item<float>();
      row.push_back(full_precision ? fmt::format("{}", p) : fmt::format("{:.3f}", p));
    }
  }
  return rows;
}

void write_csv(const std::filesystem::path& file, const Prediction& prediction) {
  std::string text;
  for (const auto& row : rows_of(prediction, true))
    text += fmt::format("{}\n", fmt::join(row, ","));
  write_file(file, text);
}

void print_table(const Prediction& prediction) {
  const auto rows = rows_of(prediction, false);
  Table table(rows.front());
  for (size_t i = 1; i < rows.size(); ++i) table.add(rows[i]);
  fmt::print("{}", table.text());
}

int run(const Arguments& args) {
  const auto prediction = predict(load_run(args.model), args);
  if (args.out.empty())
    print_table(prediction);
  else
    write_csv(args.out, prediction);
  if (!prediction.true_label.empty()) {
    size_t correct = 0;
    for (size_t i = 0; i < prediction.predicted.size(); ++i)
      correct += prediction.predicted[i] == prediction.true_label[i];
    fmt::print(
        "accuracy: {:.2f} % ({} of {})\n",
        100.0 * static_cast<double>(correct) / static_cast<double>(prediction.predicted.size()),
        correct, prediction.predicted.size());
  }
  return kSuccess;
}

}  // namespace

Command add_predict(CLI::App& program) {
  auto args = std::make_shared<Arguments>();
  auto* app =
      program.add_subcommand("predict", "classify the cases of a file with a trained model");
  app->footer(kFooter);
  app->add_option("--model", args->model, "folder of one run, e.g. runs/JapaneseVowels/bn-seed1")
      ->required();
  app->add_option("--input", args->input, "file of cases; with labels the accuracy is printed too")
      ->required();
  app->add_option("--out", args->out, "CSV file to write instead of the printed table");
  return {app, [args] { return run(*args); }};
}

}  // namespace kktorch::cli
