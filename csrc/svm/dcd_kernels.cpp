// Built once per instruction-set tier (KKTORCH_TIER).
#include "csrc/svm/dcd.h"
#include "csrc/svm/vector.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

/// xorshift64*, the high bits scaled to [0, bound).
inline int64_t random_below(uint64_t& state, int64_t bound) {
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return static_cast<int64_t>(((state * 0x2545F4914F6CDD1Dull) >> 33) * bound >> 31);
}

/// W_k += z_k du for every row k, and y = sum_k next_k W_k, in one pass over blocks of columns of W
/// [rz, rx] (transposed). Either part may be left out by a null pointer.
template <int64_t kVectors>
inline void update_block(const DcdState& s, const double* z, const double* next, int64_t column) {
  Doubles du[kVectors] = {}, y[kVectors] = {};
  if (z)
    for (int64_t v = 0; v < kVectors; ++v) du[v] = load(s.du + column + v * kDoubles);
  for (int64_t k = 0; k < s.rz; ++k) {
    double* W = s.W + k * s.rx + column;
    const double zk = z ? z[k] : 0, nk = next ? next[k] : 0;
    for (int64_t v = 0; v < kVectors; ++v) {
      Doubles w = load(W + v * kDoubles);
      if (z) {
        w += zk * du[v];
        store(W + v * kDoubles, w);
      }
      y[v] += nk * w;
    }
  }
  for (int64_t v = 0; v < kVectors; ++v) store(s.y + column + v * kDoubles, y[v]);
}

void update(const DcdState& s, const double* z, const double* next) {
  int64_t c = 0;
  for (; c + 8 * kDoubles <= s.rx; c += 8 * kDoubles) update_block<8>(s, z, next, c);
  for (; c + 2 * kDoubles <= s.rx; c += 2 * kDoubles) update_block<2>(s, z, next, c);
  for (; c + kDoubles <= s.rx; c += kDoubles) update_block<1>(s, z, next, c);
  for (; c < s.rx; ++c) {
    double sum = 0;
    for (int64_t k = 0; k < s.rz; ++k) {
      double& w = s.W[k * s.rx + c];
      if (z) w += z[k] * s.du[c];
      if (next) sum += next[k] * w;
    }
    s.y[c] = sum;
  }
}

/// The rows of the first active pairs of q, which lie anywhere in memory, on their way to the
/// cache.
inline void prefetch(const DcdState& s, int64_t q) {
  constexpr int64_t kPairs = 8, kNumbers = 64, kLine = 8;
  const int64_t count = s.active_count[q] < kPairs ? s.active_count[q] : kPairs;
  const int64_t width = s.rx < kNumbers ? s.rx : kNumbers;
  for (int64_t i = 0; i < count; ++i) {
    const double* a = s.a + s.active[s.ptr[q] + i] * s.rx;
    for (int64_t c = 0; c < width; c += kLine) __builtin_prefetch(a + c);
  }
}

bool equality_sweep(const DcdState& s, int64_t q) {
  bool changed = false;
  for (int64_t j = s.equality_ptr[q]; j < s.equality_ptr[q + 1]; ++j) {
    if (s.ee[j] * s.zz[q] == 0) continue;
    const double d = -dot(s.e + j * s.rx, s.y, s.rx) / (s.ee[j] * s.zz[q]);
    s.nu[j] += d;
    if (d != 0) axpy(d * s.zz[q], s.e + j * s.rx, s.y, s.rx), changed = true;
  }
  return changed;
}

/// One sweep over the active pairs of q; the first one shrinks and measures the gradients.
template <bool kFirst>
bool sweep(DcdState& s, int64_t q) {
  int64_t* pairs = s.active + s.ptr[q];
  int64_t& count = s.active_count[q];
  bool changed = false;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t pick = i + random_below(s.random, count - i), j = pairs[pick];
    pairs[pick] = pairs[i];
    pairs[i] = j;
    const double* a = s.a + j * s.rx;
    const double g = dot(a, s.y, s.rx) - 1;
    if (kFirst && s.lam[j] == 0 && g > s.bound) {
      pairs[i--] = pairs[--count];
      pairs[count] = j;
      continue;
    }
    if (kFirst) {
      const double projected = s.lam[j] == 0 && g > 0 ? 0 : g;
      s.largest = projected > s.largest ? projected : s.largest;
    }
    const double target = s.lam[j] - g * s.step[j];
    const double d = (target > 0 ? target : 0) - s.lam[j];
    if (d == 0) continue;
    s.lam[j] += d;
    axpy(d * s.zz[q], a, s.y, s.rx);
    changed = true;
  }
  return changed;
}

void epoch(DcdState& s) {
  const double* pending = nullptr;  // z of the query whose du is not yet in W
  for (int64_t i = 0; i < s.order_count; ++i) {
    const int64_t q = s.order[i];
    if (i + 1 < s.order_count) prefetch(s, s.order[i + 1]);
    update(s, pending, s.z + q * s.rz);
    double* const before = s.du;
    for (int64_t c = 0; c < s.rx; ++c) before[c] = s.y[c];
    bool changed = false;
    for (int64_t pass = 0; pass < s.inner; ++pass) {
      const bool equality = equality_sweep(s, q);
      const bool moved = (pass == 0 ? sweep<true>(s, q) : sweep<false>(s, q)) || equality;
      changed |= moved;
      if (!moved) break;
    }
    pending = changed ? s.z + q * s.rz : nullptr;
    if (!changed) continue;
    const double inverse = 1 / s.zz[q];  // y = W z + zz du
    for (int64_t c = 0; c < s.rx; ++c) s.du[c] = (s.y[c] - before[c]) * inverse;
  }
  if (pending) update(s, pending, nullptr);
}

}  // namespace

template <typename T>
DcdKernels<T> dcd_kernels() {
  return {epoch};
}
template DcdKernels<double> dcd_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
