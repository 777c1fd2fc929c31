#include "csrc/convex/group_design.h"

#include <algorithm>
#include <utility>

#include "csrc/convex/chunks.h"
#include "csrc/convex/tiles.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kMostRows = 512;

}  // namespace

template <typename T>
struct GroupDesign<T>::Scratch {
  std::vector<const T*> columns;
  std::vector<T> across, masked;  // [c, rows], [rows]
};

template <typename T>
GroupDesign<T>::GroupDesign(const Samples<T>& samples, int64_t c, int64_t d,
                            const std::vector<int64_t>& groups, Parallel parallel)
    : N_(samples.N), P_(samples.P), c_(c), d_(d), parallel_(std::move(parallel)) {
  const int64_t n = samples.D / d;
  std::vector<int64_t> place(n, -1), tokens;
  for (size_t j = 0; j < groups.size(); ++j) {
    const int64_t k = groups[j] % n, p = groups[j] / n / c, l = groups[j] / n % c;
    if (place[k] < 0) {
      place[k] = static_cast<int64_t>(tokens.size());
      tokens.push_back(k);
    }
    place_.push_back(place[k]);
    if (runs_.empty() || runs_.back().p != p || runs_.back().l != l)
      runs_.push_back({p, l, static_cast<int64_t>(j), 0});
    ++runs_.back().count;
  }
  tokens_ = static_cast<int64_t>(tokens.size());
  const int64_t bytes = std::max<int64_t>(1, tokens_ * d * static_cast<int64_t>(sizeof(T)));
  rows_ = std::clamp<int64_t>(kBlockBytes / bytes / kColumnRows, 4, kMostRows / kColumnRows) *
          kColumnRows;
  gather(samples, tokens);
}

template <typename T>
void GroupDesign<T>::copy_token(const Samples<T>& samples, int64_t first, int64_t count, int64_t k,
                                T* to) const {
  // Few rows at a time: they may be a power of two apart and fight for the same cache lines.
  for (int64_t begin = 0; begin < count; begin += 8)
    for (int64_t e = 0; e < d_; ++e)
      for (int64_t r = begin; r < std::min(count, begin + 8); ++r)
        to[e * rows_ + r] = samples.wide[(first + r) * samples.D + k * d_ + e];
}

template <typename T>
void GroupDesign<T>::gather(const Samples<T>& samples, const std::vector<int64_t>& tokens) {
  columns_.resize(blocks() * tokens_ * d_ * rows_);
  if (samples.gate) gates_.resize(blocks() * P_ * rows_);
  parallel_(blocks(), [&](int64_t b) {
    const int64_t first = b * rows_, count = std::min(rows_, N_ - first);
    T* to = columns_.data() + b * tokens_ * d_ * rows_;
    for (const int64_t k : tokens) {
      if (samples.ids)
        for (int64_t r = 0; r < count; ++r)
          to[samples.ids[(first + r) * samples.n + k] * rows_ + r] = 1;
      else
        copy_token(samples, first, count, k, to);
      to += d_ * rows_;
    }
    if (!samples.gate) return;
    for (int64_t p = 0; p < P_; ++p)
      for (int64_t r = 0; r < count; ++r)
        gates_[(b * P_ + p) * rows_ + r] = static_cast<T>(samples.gate[(first + r) * P_ + p]);
  });
}

/// A of the block, [c, rows].
template <typename T>
void GroupDesign<T>::predict(int64_t block, const T* W, Scratch& s) const {
  std::fill(s.across.begin(), s.across.end(), T(0));
  for (const auto& run : runs_) {
    s.columns.clear();
    for (int64_t j = run.first; j < run.first + run.count; ++j)
      s.columns.push_back(column(block, j));
    tile_kernels<T>().weigh(s.columns.data(), W + run.first * d_, run.count, d_, rows_,
                            gate(block, run.p), s.across.data() + run.l * rows_);
  }
}

/// G += of the block, from its R [c, rows].
template <typename T>
void GroupDesign<T>::accumulate(int64_t block, Scratch& s, T* G) const {
  for (const auto& run : runs_) {
    const T* residual = s.across.data() + run.l * rows_;
    if (const T* open = gate(block, run.p)) {
      for (int64_t r = 0; r < rows_; ++r) s.masked[r] = open[r] * residual[r];
      residual = s.masked.data();
    }
    for (int64_t j = run.first; j < run.first + run.count; ++j)
      tile_kernels<T>().correlate(column(block, j), residual, d_, rows_, G + j * d_);
  }
}

template <typename T>
void GroupDesign<T>::pass(const T* W, int64_t c, const Head& head, T* G) const {
  const auto run = [&](int64_t begin, int64_t end, T* sum) {
    Scratch s = {
        .columns = {}, .across = std::vector<T>(c * rows_), .masked = std::vector<T>(rows_)};
    std::vector<T> A(rows_ * c);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * rows_, rows = std::min(rows_, N_ - first);
      predict(b, W, s);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t l = 0; l < c; ++l) A[r * c + l] = s.across[l * rows_ + r];
      const T* R = head(b, first, rows, A.data());
      if (!sum) continue;
      for (int64_t l = 0; l < c; ++l) {
        T* to = s.across.data() + l * rows_;
        for (int64_t r = 0; r < rows; ++r) to[r] = R[r * c + l];
        std::fill(to + rows, to + rows_, T(0));
      }
      accumulate(b, s, sum);
    }
  };
  sum_by_chunks(parallel_, blocks(), std::min(kMostChunks, blocks()),
                static_cast<int64_t>(place_.size()) * d_, G, run);
}

template class GroupDesign<double>;
template class GroupDesign<float>;

}  // namespace kktorch::csrc
