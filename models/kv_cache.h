#pragma once
// State of incremental decoding of one attention layer: what a chunk of new tokens needs of those
// before it. AttentionBNSH makes, reads and writes it.
#include <torch/torch.h>

#include <vector>

#include "models/head_groups.h"

namespace kktorch {

struct KVCacheOptions {
  int64_t batch = 0;
  int64_t capacity = 0;  ///< tokens per sample
  int64_t head_dim = 0, value_head_dim = 0;
  std::vector<int64_t> scales;  ///< window of every key head; 1: its tokens are stored as they are
  int64_t num_special = 0;      ///< leading tokens that are windows of their own
  torch::TensorOptions tensor;  ///< dtype and device of the layer
};

/// Keys are stored raw: what Attention-BN does to them sits in the query. Heads that pool store the
/// special tokens, the mean of every finished window, and, in the tail, the tokens of the window in
/// progress.
class KVCache {
 public:
  /// Heads of one scale s. W windows of s tokens fit in the capacity.
  struct Group : detail::HeadGroup {
    torch::Tensor key, value;            ///< [B, heads, num_special + W, D or Dv]
    torch::Tensor key_tail, value_tail;  ///< [B, heads, s - 1, D or Dv]
  };

  /// @throws c10::ValueError  "KVCache: expected <option>, but got <value>".
  explicit KVCache(const KVCacheOptions& options);

  int64_t capacity() const { return capacity_; }
  int64_t num_special() const { return num_special_; }
  int64_t batch() const { return static_cast<int64_t>(lengths_.size()); }
  /// Tokens of each sample in the cache, as `length`, but on the host.
  const std::vector<int64_t>& lengths() const { return lengths_; }

  /// Sample i becomes what sample index[i] was, as beam search needs it.
  /// @param index  int64 [new batch], on the device of the cache or on the host.
  void reorder(const torch::Tensor& index);

  /// The state of one sample, as views: writing there writes here, except for lengths().
  KVCache sample(int64_t b) const;

  /// @throws c10::Error  "KVCache: expected capacity >= {need}, but got {C}" if `tokens[b]` more do
  ///                     not fit for some sample b.
  void check_room(const std::vector<int64_t>& tokens) const;

  /// Counts tokens that have been written, in lengths() only.
  void advance(const std::vector<int64_t>& tokens);

  std::vector<Group> groups;
  torch::Tensor length;    ///< int64 [B]
  torch::Tensor mean, m2;  ///< [B, Hk, D] of the keys: mean, sum of squared deviations; float64 for
                           ///< float64 layers, else float32. Attention-BN only.

 private:
  template <typename Function>
  void transform(const Function& function);

  int64_t capacity_, num_special_;
  std::vector<int64_t> lengths_;
};

}  // namespace kktorch
