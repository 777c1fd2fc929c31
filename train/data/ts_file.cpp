#include "train/data/ts_file.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/zeros.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string_view>

#include "train/common/error.h"
#include "train/common/files.h"
#include "train/common/text.h"

namespace kktorch {
namespace {

constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

std::string lower(std::string_view text) {
  std::string result(text);
  for (auto& c : result)
    if ('A' <= c && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return result;
}

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> result;
  for (const auto part : split(text, ' '))
    for (const auto word : split(part, '\t'))
      if (!word.empty()) result.emplace_back(word);
  return result;
}

/// Replaces NaN: linear between the neighbours in time, held at both ends, 0 if there are none.
void interpolate(std::vector<double>& series) {
  const auto size = series.size();
  std::optional<size_t> known;  // the last index that has a value
  for (size_t t = 0; t < size; ++t) {
    if (std::isnan(series[t])) continue;
    for (size_t gap = known ? *known + 1 : 0; gap < t; ++gap) {
      const double weight =
          known ? static_cast<double>(gap - *known) / static_cast<double>(t - *known) : 1;
      series[gap] = (known ? (1 - weight) * series[*known] : 0) + weight * series[t];
    }
    known = t;
  }
  std::fill(series.begin() + static_cast<std::ptrdiff_t>(known ? *known + 1 : 0), series.end(),
            known ? series[*known] : 0);
}

struct Header {
  std::string problem_name;
  std::optional<int64_t> dimensions, series_length;
  bool equal_length = false, target_label = false, class_label = false;
  std::vector<std::string> class_labels;
};

using Case = std::vector<std::vector<double>>;  // channel, time

/// One pass over the lines of a file; knows where it is, so that every error can say it.
class TsParser {
 public:
  explicit TsParser(std::filesystem::path file)
      : file_(std::move(file)), content_(read_file(file_)) {}

  TsFile parse() {
    for (std::string_view rest = content_; !rest.empty();) {
      const auto end = rest.find('\n');
      parse_line(trim(rest.substr(0, end)));
      rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    }
    if (!in_data_) fail("{}: expected a line @data, but got none", file_.string());
    if (cases_.empty())
      fail("{}: expected at least one case after @data, but got none", file_.string());
    return to_tensors();
  }

 private:
  template <typename... Args>
  [[noreturn]] void fail_here(fmt::format_string<Args...> format, Args&&... args) const {
    fail("{}:{}: {}", file_.string(), line_number_,
         fmt::format(format, std::forward<Args>(args)...));
  }

  void parse_line(std::string_view line) {
    ++line_number_;
    if (line.empty() || line.front() == '#') return;
    if (in_data_)
      parse_case(line);
    else if (line.front() == '@')
      parse_key(line.substr(1));
    else
      fail_here("expected a comment, a line @key or @data, but got '{}'", line.substr(0, 40));
  }

  void parse_key(std::string_view line) {
    const auto space = std::min(line.find_first_of(" \t"), line.size());
    const auto key = lower(line.substr(0, space));
    const auto value = trim(line.substr(space));
    if (key == "data")
      in_data_ = true, check_header();
    else if (key == "problemname")
      header_.problem_name = value;
    else if (key == "timestamps") {
      if (parse_flag(key, value))
        fail_here("expected @timestamps false, but got true: time stamps are not implemented");
    } else if (key == "missing")
      parse_flag(key, value);  // missing values are recognised by themselves
    else if (key == "univariate") {
      if (parse_flag(key, value)) header_.dimensions = 1;
    } else if (key == "dimensions" || key == "dimension")
      header_.dimensions = parse_count(key, value);
    else if (key == "equallength")
      header_.equal_length = parse_flag(key, value);
    else if (key == "serieslength")
      header_.series_length = parse_count(key, value);
    else if (key == "targetlabel")
      header_.target_label = parse_flag(key, value);
    else if (key == "classlabel")
      parse_class_labels(value);
    else
      fail_here("expected a key of the .ts format, but got '@{}'", key);
  }

  void parse_class_labels(std::string_view value) {
    auto labels = words(value);
    header_.class_label = parse_flag("classlabel", labels.empty() ? "" : labels.front());
    if (!header_.class_label) return;
    labels.erase(labels.begin());
    if (labels.empty()) fail_here("expected @classlabel true <label> <label> …, but got no label");
    for (const auto& label : labels)
      if (std::count(labels.begin(), labels.end(), label) > 1)
        fail_here("expected distinct class labels, but got '{}' twice", label);
    header_.class_labels = std::move(labels);
  }

  void check_header() const {
    if (header_.class_label && header_.target_label)
      fail_here("expected one of @classlabel true and @targetlabel true, but got both");
  }

  bool parse_flag(std::string_view key, std::string_view value) const {
    const auto flag = lower(value);
    if (flag != "true" && flag != "false")
      fail_here("expected @{} true or false, but got '{}'", key, value);
    return flag == "true";
  }

  int64_t parse_count(std::string_view key, std::string_view value) const {
    int64_t count = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
    if (error != std::errc() || end != value.data() + value.size() || count < 1)
      fail_here("expected @{} with a positive integer, but got '{}'", key, value);
    return count;
  }

  double parse_number(std::string_view text) const {
    if (text == "?" || lower(text) == "nan") return kMissing;
    const auto digits = text.starts_with('+') && !text.starts_with("+-") ? text.substr(1) : text;
    double value = 0;
    auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error == std::errc::result_out_of_range) {
      // strtod tells underflow, which is 0, from overflow.
      value = std::strtod(std::string(digits).c_str(), nullptr);
      error = {};
    }
    if (digits.empty() || error != std::errc() || end != digits.data() + digits.size() ||
        !std::isfinite(static_cast<float>(value)))
      fail_here("expected a number, NaN or ?, but got '{}'", text);
    return value;
  }

  void parse_case(std::string_view line) {
    auto fields = split(line, ':');
    if (header_.class_label || header_.target_label) {
      if (fields.size() < 2)
        fail_here("expected channels and a label separated by ':', but got '{}'",
                  line.substr(0, 40));
      parse_label(fields.back());
      fields.pop_back();
    }
    if (!header_.dimensions) header_.dimensions = static_cast<int64_t>(fields.size());
    if (static_cast<int64_t>(fields.size()) != *header_.dimensions)
      fail_here("expected {} channels, but got {}", *header_.dimensions, fields.size());
    Case channels;
    for (const auto field : fields) {
      auto& series = channels.emplace_back();
      for (const auto value : split(field, ',')) series.push_back(parse_number(value));
      if (series.size() != channels.front().size())
        fail_here("expected channels of equal length, but got {} and {}", channels.front().size(),
                  series.size());
      interpolate(series);
    }
    check_length(static_cast<int64_t>(channels.front().size()));
    cases_.push_back(std::move(channels));
  }

  void check_length(int64_t length) {
    if (!header_.equal_length) return;
    if (!header_.series_length) header_.series_length = length;
    if (length != *header_.series_length)
      fail_here("expected {} steps (@equallength true), but got {}", *header_.series_length,
                length);
  }

  void parse_label(std::string_view text) {
    if (header_.target_label) {
      const double target = parse_number(text);
      if (std::isnan(target)) fail_here("expected a number as target, but got '{}'", text);
      targets_.push_back(static_cast<float>(target));
      return;
    }
    const auto& known = header_.class_labels;
    const auto found = std::find(known.begin(), known.end(), text);
    if (found == known.end())
      fail_here("expected one of the class labels {}, but got '{}'", fmt::join(known, ", "), text);
    labels_.push_back(found - known.begin());
  }

  TsFile to_tensors() const {
    const auto n = static_cast<int64_t>(cases_.size()), channels = *header_.dimensions;
    auto lengths = at::empty({n}, at::kLong);
    for (int64_t i = 0; i < n; ++i)
      lengths[i] = static_cast<int64_t>(cases_[static_cast<size_t>(i)].front().size());
    const auto longest = lengths.max().item<int64_t>();
    auto x = at::zeros({n, longest, channels}, at::kFloat);
    auto* out = x.mutable_data_ptr<float>();
    for (const auto& one : cases_) {
      for (size_t c = 0; c < one.size(); ++c)
        for (size_t t = 0; t < one[c].size(); ++t)
          out[t * one.size() + c] = static_cast<float>(one[c][t]);
      out += longest * channels;
    }
    TsFile result{
        .problem_name = header_.problem_name,
        .class_labels = header_.class_labels,
        .x = x,
        .padding_mask = at::arange(longest, at::kLong).unsqueeze(0).ge(lengths.unsqueeze(1)),
        .lengths = lengths,
        .labels = {},
        .targets = {}};
    if (header_.class_label) result.labels = at::tensor(labels_, at::kLong);
    if (header_.target_label) result.targets = at::tensor(targets_, at::kFloat);
    return result;
  }

  std::filesystem::path file_;
  std::string content_;
  int64_t line_number_ = 0;
  bool in_data_ = false;
  Header header_;
  std::vector<Case> cases_;
  std::vector<int64_t> labels_;
  std::vector<float> targets_;
};

}  // namespace

TsFile read_ts_file(const std::filesystem::path& file) { return TsParser(file).parse(); }

TsFile pad_to(TsFile cases, int64_t length) {
  const auto missing = length - cases.x.size(1);
  if (missing < 0)
    fail("{}: expected series of at most {} steps, but got {}", cases.problem_name, length,
         cases.x.size(1));
  cases.x = at::constant_pad_nd(cases.x, {0, 0, 0, missing});
  cases.padding_mask = at::constant_pad_nd(cases.padding_mask, {0, missing}, true);
  return cases;
}

}  // namespace kktorch
