#include "train/data/digits.h"

#include <ATen/ops/tensor.h>
#include <zlib.h>

#include <array>
#include <charconv>
#include <memory>

#include "train/common/error.h"
#include "train/common/text.h"
#include "train/data/site_packages.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSide = 8, kPixels = kSide * kSide, kLargestPixel = 16, kClasses = 10;
constexpr double kTestFraction = 0.25;

/// The content of a file, unpacked if gzip packed it.
std::string unpacked(const fs::path& file) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> in(gzopen(file.c_str(), "rb"), gzclose);
  if (!in) fail("{}: expected a readable file, but opening it failed", file.string());
  std::string content;
  std::array<char, 1 << 16> buffer;
  for (int got = 0; (got = gzread(in.get(), buffer.data(), buffer.size())) > 0;)
    content.append(buffer.data(), static_cast<size_t>(got));
  int code = Z_OK;
  const char* problem = gzerror(in.get(), &code);
  if (code != Z_OK) fail("{}: expected a whole file, but got: {}", file.string(), problem);
  return content;
}

int64_t parse_number(std::string_view text, int64_t largest, const std::string& place) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > largest)
    fail("{}: expected an integer in 0..{}, but got '{}'", place, largest, text);
  return value;
}

std::vector<std::string> digit_names() {
  std::vector<std::string> names;
  for (int64_t digit = 0; digit < kClasses; ++digit) names.push_back(std::to_string(digit));
  return names;
}

}  // namespace

Cases read_digits(const fs::path& file) {
  const auto content = unpacked(file);
  std::vector<float> pixels;
  std::vector<int64_t> labels;
  size_t columns = 0;
  int64_t line_number = 0;
  for (const auto line : split(content, '\n')) {
    const auto place = fmt::format("{}:{}", file.string(), ++line_number);
    if (line.empty()) continue;
    const auto fields = split(line, ',');
    if (columns == 0) columns = fields.size();
    if (fields.size() != columns || (columns != kPixels && columns != kPixels + 1))
      fail("{}: expected {} pixels, and in all lines or in none a digit, but got {} numbers", place,
           kPixels, fields.size());
    for (size_t i = 0; i < kPixels; ++i)
      pixels.push_back(static_cast<float>(parse_number(fields[i], kLargestPixel, place)));
    if (columns > kPixels) labels.push_back(parse_number(fields.back(), kClasses - 1, place));
  }
  if (pixels.empty()) fail("{}: expected at least one image, but got none", file.string());
  Cases cases;
  cases.examples.inputs = at::tensor(pixels, at::kFloat).view({-1, 1, kSide, kSide});
  if (labels.empty()) return cases;
  cases.examples.labels = at::tensor(labels, at::kLong);
  cases.class_labels = digit_names();
  return cases;
}

Dataset load_digits() {
  for (const auto& packages : site_packages()) {
    const auto file = packages / "sklearn/datasets/data/digits.csv.gz";
    std::error_code error;
    if (!fs::is_regular_file(file, error)) continue;
    const auto cases = read_digits(file);
    const auto split = stratified_split(cases.examples.labels, kTestFraction, /*seed=*/0);
    return {.name = "digits",
            .kind = DataKind::kImages,
            .class_labels = cases.class_labels,
            .train = cases.examples.select(split.rest),
            .test = cases.examples.select(split.held_out),
            .origin = {{"file", file.string()}}};
  }
  fail("digits: expected scikit-learn in the virtual environment, but got none");
}

}  // namespace kktorch
