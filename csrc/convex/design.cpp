#include "csrc/convex/design.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "csrc/convex/chunks.h"
#include "csrc/convex/tiles.h"

namespace kktorch::csrc {
namespace {

constexpr int64_t kPrivateBytes = 256 << 20;  // all private copies of G together
constexpr int64_t kTileWidth = 256;           // features of one unit of a split pass

}  // namespace

template <typename T>
struct Design<T>::Scratch {
  std::vector<T> values;       // converted features
  std::vector<const T*> rows;  // features of the rows with an open gate
  std::vector<int64_t> index;  // and which rows of the block they are
  std::vector<T*> outputs;
  std::vector<const T*> residuals;
};

template <typename T>
Design<T>::Design(const Samples<T>& samples, Parallel parallel)
    : samples_(samples), parallel_(std::move(parallel)) {
  const int64_t bytes = std::max<int64_t>(1, samples.ids ? samples.n * 8 : samples.D * sizeof(T));
  block_rows_ = std::clamp<int64_t>(kBlockBytes / bytes, 8, 256);
}

/// The features [begin, begin + width) of the samples whose gate p is open.
template <typename T>
void Design<T>::open_rows(int64_t first, int64_t count, int64_t p, int64_t begin, int64_t width,
                          Scratch& s) const {
  const int64_t D = samples_.D, P = samples_.P;
  s.rows.clear();
  s.index.clear();
  if (!samples_.wide) s.values.resize(count * width);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = first + i;
    if (samples_.gate && !samples_.gate[row * P + p]) continue;
    const T* features = samples_.wide ? samples_.wide + row * D + begin : nullptr;
    if (!features) {
      T* converted = s.values.data() + i * width;
      std::copy_n(samples_.narrow + row * D + begin, width, converted);
      features = converted;
    }
    s.rows.push_back(features);
    s.index.push_back(i);
  }
}

template <typename T>
void Design<T>::predict(int64_t first, int64_t count, const T* W, int64_t c, T* A,
                        Scratch& s) const {
  std::fill_n(A, count * c, T(0));
  for (int64_t p = 0; p < samples_.P; ++p) {
    open_rows(first, count, p, 0, samples_.D, s);
    s.outputs.clear();
    for (const int64_t i : s.index) s.outputs.push_back(A + i * c);
    tile_kernels<T>().forward(s.rows.data(), s.rows.size(), W + p * c * samples_.D, c, samples_.D,
                              s.outputs.data());
  }
}

template <typename T>
void Design<T>::accumulate(int64_t first, int64_t count, int64_t p, int64_t begin, int64_t width,
                           const T* R, int64_t c, T* G, Scratch& s) const {
  open_rows(first, count, p, begin, width, s);
  s.residuals.clear();
  for (const int64_t i : s.index) s.residuals.push_back(R + i * c);
  tile_kernels<T>().backward(s.rows.data(), s.rows.size(), s.residuals.data(), c, width,
                             G + p * c * samples_.D + begin, samples_.D);
}

template <typename T>
void Design<T>::pass(const T* W, int64_t c, const Head& head, T* G) const {
  ++reads_;
  if (samples_.ids) return ids_pass(W, c, head, G);
  const int64_t bytes = samples_.P * c * samples_.D * static_cast<int64_t>(sizeof(T));
  const int64_t chunks =
      std::min({kMostChunks, blocks(), kPrivateBytes / std::max<int64_t>(1, bytes)});
  if (chunks < std::min<int64_t>(kMostChunks, blocks()))
    split_pass(W, c, head, G);
  else
    fused_pass(W, c, head, G, std::max<int64_t>(1, chunks));
}

template <typename T>
void Design<T>::fused_pass(const T* W, int64_t c, const Head& head, T* G, int64_t chunks) const {
  const auto run = [&](int64_t begin, int64_t end, T* sum) {
    Scratch s;
    std::vector<T> A(block_rows_ * c);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * block_rows_, rows = std::min(block_rows_, samples_.N - first);
      predict(first, rows, W, c, A.data(), s);
      const T* R = head(b, first, rows, A.data());
      if (!sum) continue;
      for (int64_t p = 0; p < samples_.P; ++p)
        accumulate(first, rows, p, 0, samples_.D, R, c, sum, s);
    }
  };
  sum_by_chunks(parallel_, blocks(), chunks, samples_.P * c * samples_.D, G, run);
}

template <typename T>
void Design<T>::split_pass(const T* W, int64_t c, const Head& head, T* G) const {
  std::vector<T> R(G ? samples_.N * c : 0);
  parallel_(blocks(), [&](int64_t b) {
    Scratch s;
    const int64_t first = b * block_rows_, rows = std::min(block_rows_, samples_.N - first);
    std::vector<T> A(rows * c);
    predict(first, rows, W, c, A.data(), s);
    const T* residual = head(b, first, rows, A.data());
    if (G) std::copy_n(residual, rows * c, R.data() + first * c);
  });
  if (!G) return;
  const int64_t tiles = (samples_.D + kTileWidth - 1) / kTileWidth;
  parallel_(samples_.P * tiles, [&](int64_t unit) {
    Scratch s;
    const int64_t p = unit / tiles, begin = unit % tiles * kTileWidth;
    const int64_t width = std::min(kTileWidth, samples_.D - begin);
    for (int64_t l = 0; l < c; ++l) std::fill_n(G + (p * c + l) * samples_.D + begin, width, T(0));
    for (int64_t first = 0; first < samples_.N; first += block_rows_)
      accumulate(first, std::min(block_rows_, samples_.N - first), p, begin, width,
                 R.data() + first * c, c, G, s);
  });
}

/// W and G are held with the outputs innermost, [P, n, V, c], while a pass runs.
template <typename T>
void Design<T>::ids_pass(const T* W, int64_t c, const Head& head, T* G) const {
  const int64_t N = samples_.N, D = samples_.D, P = samples_.P, n = samples_.n, V = samples_.V;
  const auto is_open = [&](int64_t i, int64_t p) {
    return !samples_.gate || samples_.gate[i * P + p];
  };
  std::vector<T> inner(P * D * c), R(G ? N * c : 0);
  parallel_(P, [&](int64_t p) {
    for (int64_t l = 0; l < c; ++l)
      for (int64_t e = 0; e < D; ++e) inner[(p * D + e) * c + l] = W[(p * c + l) * D + e];
  });
  parallel_(blocks(), [&](int64_t b) {
    const int64_t first = b * block_rows_, rows = std::min(block_rows_, N - first);
    std::vector<T> A(rows * c);
    for (int64_t p = 0; p < P; ++p)
      for (int64_t i = 0; i < rows; ++i) {
        if (!is_open(first + i, p)) continue;
        for (int64_t k = 0; k < n; ++k) {
          const T* w = inner.data() + ((p * n + k) * V + samples_.ids[(first + i) * n + k]) * c;
          T* __restrict out = A.data() + i * c;
          for (int64_t l = 0; l < c; ++l) out[l] += w[l];
        }
      }
    const T* residual = head(b, first, rows, A.data());
    if (G) std::copy_n(residual, rows * c, R.data() + first * c);
  });
  if (!G) return;
  parallel_(P * n, [&](int64_t unit) {
    const int64_t p = unit / n, k = unit % n;
    T* own = inner.data() + unit * V * c;
    std::fill_n(own, V * c, T(0));
    for (int64_t i = 0; i < N; ++i) {
      if (!is_open(i, p)) continue;
      T* __restrict to = own + samples_.ids[i * n + k] * c;
      const T* r = R.data() + i * c;
      for (int64_t l = 0; l < c; ++l) to[l] += r[l];
    }
    for (int64_t l = 0; l < c; ++l)
      for (int64_t v = 0; v < V; ++v) G[(p * c + l) * D + k * V + v] = own[v * c + l];
  });
}

template <typename T>
double Design<T>::squared_norm() const {
  const int64_t size = samples_.P * samples_.D;
  std::mt19937_64 generator(1);
  std::vector<T> v(size), next(size);
  for (auto& x : v)
    x = static_cast<T>(static_cast<double>(generator() >> 11) / 9007199254740992. - 0.4);
  double norm = 0;
  const auto normalise = [&](std::vector<T>& x) {
    double sum = 0;
    for (const T value : x) sum += double(value) * value;
    const double root = std::sqrt(sum);
    if (root > 0)
      for (auto& value : x) value = static_cast<T>(value / root);
    return root;
  };
  normalise(v);
  for (int round = 0; round < 50; ++round) {
    pass(
        v.data(), 1, [](int64_t, int64_t, int64_t, T* A) { return A; }, next.data());
    const double previous = norm;
    norm = normalise(next);  // |F'F v| <= the largest eigenvalue
    std::swap(v, next);
    if (norm == 0 || std::abs(norm - previous) < 1e-3 * norm) break;
  }
  return norm;
}

template class Design<double>;
template class Design<float>;

}  // namespace kktorch::csrc
