#include "train/loop/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace kktorch {
namespace {

bool is_terminal() {
  const char* kind = std::getenv("TERM");
  return isatty(STDERR_FILENO) == 1 && kind != nullptr && std::string_view(kind) != "dumb";
}

/// One less than there are columns: some terminals wrap a line that fills the last one.
int64_t terminal_width() {
  winsize size = {};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1 : 79;
}

}  // namespace

std::string clock_text(double seconds) {
  const auto whole = std::max<int64_t>(0, std::llround(seconds));
  const auto hours = whole / 3600, minutes = whole / 60 % 60;
  return hours > 0 ? fmt::format("{}:{:02}:{:02}", hours, minutes, whole % 60)
                   : fmt::format("{}:{:02}", minutes, whole % 60);
}

Progress::Progress(std::string label, int64_t total, int64_t done)
    : label_(std::move(label)),
      total_(std::max<int64_t>(1, total)),
      first_(done),
      tenths_(10 * done / total_),
      live_(is_terminal()) {}

Progress::~Progress() {
  if (live_) fmt::print(stderr, "\r\033[K");
}

void Progress::update(int64_t done) {
  if (!live_ || Clock::now() - drawn_ < std::chrono::milliseconds(100)) return;
  draw(done);
}

void Progress::note(int64_t done, const std::string& text) {
  text_ = text;
  const auto tenths = 10 * done / total_;
  if (live_)
    draw(done);
  else if (tenths > tenths_)
    fmt::print(stderr, "{}  {}  ETA {}\n", label_, text_, remaining_time(done));
  tenths_ = tenths;
}

void Progress::draw(int64_t done) {
  const auto numbers = fmt::format(" ETA {} {}", remaining_time(done), text_);
  const auto used = label_.size() + numbers.size() + 3;  // a space and the two ends of the bar
  const auto bar = std::clamp<int64_t>(terminal_width() - static_cast<int64_t>(used), 4, 32);
  const auto filled = bar * std::min(done, total_) / total_;
  auto line = fmt::format("{} [{:#>{}}{:.>{}}]{}", label_, "", filled, "", bar - filled, numbers);
  line.resize(std::min<size_t>(line.size(), static_cast<size_t>(terminal_width())));
  fmt::print(stderr, "\r{}\033[K", line);
  std::fflush(stderr);
  drawn_ = Clock::now();
}

std::string Progress::remaining_time(int64_t done) const {
  if (done <= first_) return "-";
  const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
  return clock_text(elapsed * static_cast<double>(total_ - done) /
                    static_cast<double>(done - first_));
}

}  // namespace kktorch
