#pragma once
// The linear map of convex attention and one pass over the samples.
//
//     A_il = sum_p g_ip <W[p,l], F_i>        G[p,l] = sum_i g_ip R_il F_i        (F_i: D features)
//
// Features are rows of D values, or token ids: F_i is then one-hot in each of n positions over V
// values, D = n V, and the products become gathers. A pass evaluates A by blocks of samples, asks
// for R of the block, and adds the block to G while its features are still in the cache, so that an
// iteration reads the features once. Gates that are closed for a sample cost nothing.
//
// Chunks of blocks own a private G each, added in a fixed order; their number depends on the shape
// alone. Where the private copies would be too large, A and R of all samples come first, and G is
// then cut by gates and features instead. Results do not depend on the number of threads.
#include <cstdint>
#include <functional>
#include <vector>

#include "csrc/convex/parallel.h"

namespace kktorch::csrc {

/// Samples as the caller stores them; pointers outlive the design. One of wide, narrow, ids.
template <typename T>
struct Samples {
  int64_t N, D, P;
  const T* wide = nullptr;        ///< [N, D]
  const float* narrow = nullptr;  ///< [N, D], converted block by block
  const int64_t* ids = nullptr;   ///< [N, n], each in [0, V)
  int64_t n = 0, V = 0;           ///< of ids
  const uint8_t* gate = nullptr;  ///< [N, P], or null: P = 1, open
};

/// What a first-order method sees of it: predictions and gradients, by blocks of samples.
template <typename T>
class LinearMap {
 public:
  virtual ~LinearMap() = default;

  /// R of the block [first, first + count) from its A, both [count, c]; `block` counts the blocks.
  /// The result may lie in A.
  using Head = std::function<const T*(int64_t block, int64_t first, int64_t count, T* A)>;

  /// One read: A of W, R by `head`, and G, of the shape of W, or null where it is not wanted.
  virtual void pass(const T* W, int64_t c, const Head& head, T* G) const = 0;

  virtual int64_t N() const = 0;
  /// Number of blocks of a pass.
  virtual int64_t blocks() const = 0;
  virtual const Parallel& parallel() const = 0;
};

/// W and G: [P, c, D].
template <typename T>
class Design : public LinearMap<T> {
 public:
  using typename LinearMap<T>::Head;

  Design(const Samples<T>& samples, Parallel parallel);

  void pass(const T* W, int64_t c, const Head& head, T* G) const override;

  int64_t N() const override { return samples_.N; }
  int64_t blocks() const override { return (samples_.N + block_rows_ - 1) / block_rows_; }
  int64_t block_rows() const { return block_rows_; }

  /// Largest squared singular value of the map of one output, by power iteration from a fixed
  /// start; a lower bound that is close.
  double squared_norm() const;

  const Samples<T>& samples() const { return samples_; }
  const Parallel& parallel() const override { return parallel_; }
  int64_t reads() const { return reads_; }

 private:
  struct Scratch;

  void predict(int64_t first, int64_t count, const T* W, int64_t c, T* A, Scratch& scratch) const;
  void accumulate(int64_t first, int64_t count, int64_t p, int64_t begin, int64_t width, const T* R,
                  int64_t c, T* G, Scratch& scratch) const;
  void open_rows(int64_t first, int64_t count, int64_t p, int64_t begin, int64_t width,
                 Scratch& scratch) const;
  void fused_pass(const T* W, int64_t c, const Head& head, T* G, int64_t chunks) const;
  void split_pass(const T* W, int64_t c, const Head& head, T* G) const;
  void ids_pass(const T* W, int64_t c, const Head& head, T* G) const;

  Samples<T> samples_;
  Parallel parallel_;
  int64_t block_rows_;
  mutable int64_t reads_ = 0;
};

}  // namespace kktorch::csrc
