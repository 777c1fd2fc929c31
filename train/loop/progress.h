#pragma once
// What a user watches while a run trains: a live line on a terminal, plain lines elsewhere.
#include <chrono>
#include <cstdint>
#include <string>

namespace kktorch {

class Progress {
 public:
  /// Writes to stderr, so that stdout holds results only.
  /// @param label  what is training, e.g. "bn seed 2/3".  @param total  steps of the run.  @param
  /// done  steps before now.
  Progress(std::string label, int64_t total, int64_t done);

  /// Clears the live line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// After `done` steps: redraws the live line at most ten times a second.
  void update(int64_t done);

  /// Text beside the bar; elsewhere a line for each tenth of the run.
  void note(int64_t done, const std::string& text);

 private:
  using Clock = std::chrono::steady_clock;

  void draw(int64_t done);
  std::string remaining_time(int64_t done) const;

  std::string label_, text_;
  int64_t total_, first_, tenths_;
  bool live_;
  Clock::time_point start_ = Clock::now(), drawn_;
};

/// "0:42", "12:05", "1:02:03".
std::string clock_text(double seconds);

}  // namespace kktorch
