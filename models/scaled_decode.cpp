#include "models/scaled_decode.h"

#include <algorithm>

#include "models/attention_variants.h"
#include "models/head_groups.h"
#include "ops/attention_bn.h"

namespace kktorch::detail {
namespace {

using torch::Tensor;

// ---- Attention-BN: running statistics sit in the query ----

/// Of the keys up to each new one, in float64.
struct PrefixStatistics {
  Tensor mean, m2;  ///< [B, Hk, T, D]
  Tensor count;     ///< [T, 1]
};

/// Sums over the chunk, shifted by the mean so far, merged with the state (Chan).
PrefixStatistics prefix_statistics(const Tensor& key, const KVCache& cache) {
  const auto before = static_cast<double>(cache.lengths()[0]);
  const auto shift = (before > 0 ? cache.mean : key.select(2, 0)).to(torch::kDouble).unsqueeze(2);
  const auto x = key.to(torch::kDouble) - shift;
  const auto n = torch::arange(1, key.size(2) + 1, x.options()).unsqueeze(1);
  const auto sum = x.cumsum(2), mean = sum / n;
  const auto m2 = (x.square().cumsum(2) - sum * mean).clamp_min(0);
  const auto count = n + before;
  const auto m2_before = cache.m2.to(torch::kDouble).unsqueeze(2);
  return {shift + mean * (n / count), m2_before + m2 + mean.square() * (before * n / count), count};
}

/// (q - beta mu) / (sigma2 + eps) with the statistics at every new token, in the accumulation type;
/// the state advances.
Tensor normalise_queries(const AttentionBNSHImpl& layer, const Tensor& query, const Tensor& key,
                         KVCache& cache) {
  const auto& o = layer.options;
  const auto statistics = prefix_statistics(key, cache);
  cache.mean.copy_(statistics.mean.select(2, -1));
  cache.m2.copy_(statistics.m2.select(2, -1));

  const auto acc = cache.mean.scalar_type();
  const auto per_query_head = [&](const Tensor& t) {
    return t.to(acc).repeat_interleave(layer.queries_per_key(), 1);
  };
  const auto mean = per_query_head(statistics.mean);
  const auto shift =
      layer.beta.defined() ? layer.beta.to(acc).reshape({-1, 1, 1}) * mean : o.beta_init * mean;
  if (!o.use_std) return query.to(acc) - shift;
  const auto floor = statistics.m2 / statistics.count + o.eps;
  return (query.to(acc) - shift) * per_query_head(floor.reciprocal().masked_fill(floor == 0, 0));
}

// ---- Attention-SH: a list of tokens and windows ----

/// The chunk of new tokens at positions begin ... end - 1, and the windows of one scale.
struct Chunk {
  int64_t scale, special, begin, end;

  int64_t windows_before(int64_t position) const {
    return std::max<int64_t>(position - special, 0) / scale;
  }
  int64_t old_windows() const { return windows_before(begin); }
  int64_t new_windows() const { return windows_before(end) - old_windows(); }
  /// First token that is seen one by one: that of the window in progress.
  int64_t first_raw() const { return begin < special ? begin : special + old_windows() * scale; }
  /// Entries of the cache: special tokens, then windows.
  int64_t cached() const { return std::min(begin, special) + old_windows(); }
  /// Tokens of the window in progress after the chunk.
  int64_t tail() const { return std::max<int64_t>(end - special, 0) % scale; }
};

/// Keys, or values, that the new tokens see: entries of the cache, raw tokens, windows that end
/// inside the chunk; written back to the cache and its tail.
Tensor list_entries(const Chunk& c, const Tensor& tokens, const Tensor& cache, const Tensor& tail) {
  const auto raw = torch::cat({tail.slice(2, 0, c.begin - c.first_raw()), tokens}, 2);
  const auto first = c.special + c.old_windows() * c.scale - c.first_raw();
  const auto windows = raw.slice(2, first, first + c.new_windows() * c.scale)
                           .unflatten(2, {c.new_windows(), c.scale})
                           .mean(3);
  const auto entries = torch::cat({cache.slice(2, 0, c.cached()), raw, windows}, 2);

  const auto special = cache.slice(2, c.begin, std::min(c.special, c.end));
  special.copy_(tokens.slice(2, 0, special.size(2)));
  const auto finished = c.special + c.old_windows();
  cache.slice(2, finished, finished + c.new_windows()).copy_(windows);
  tail.slice(2, 0, c.tail()).copy_(raw.slice(2, raw.size(2) - c.tail()));
  return entries;
}

/// What each new token sees of the entries, [T, entries].
Tensor visible_entries(const Chunk& c, const torch::TensorOptions& options) {
  const auto integers = options.dtype(torch::kLong);
  const auto window = [&](const Tensor& token) {
    return torch::div(token - c.special, c.scale, "floor");
  };
  const auto query = torch::arange(c.begin, c.end, integers).unsqueeze(1);
  const auto token = torch::arange(c.first_raw(), c.end, integers);
  const auto own = (token < c.special).logical_or(window(token) == window(query));
  const auto ended = torch::arange(c.new_windows(), integers) + c.old_windows() < window(query);
  return torch::cat({torch::ones({c.end - c.begin, c.cached()}, options.dtype(torch::kBool)),
                     own.logical_and(token <= query), ended},
                    1);
}

/// [B, entries]: the number of tokens of every entry.
Tensor entry_weights(const Chunk& c, const Tensor& key) {
  const auto windows = key.new_full({c.old_windows()}, c.scale);
  const auto singles = std::min(c.begin, c.special), raw = c.end - c.first_raw();
  return torch::cat({key.new_ones({singles}), windows, key.new_ones({raw}),
                     key.new_full({c.new_windows()}, c.scale)})
      .expand({key.size(0), -1});
}

Tensor attend_to_group(const AttentionBNSHImpl& layer, const Tensor& query, const Tensor& key,
                       const Tensor& value, const KVCache& cache, const KVCache::Group& group) {
  const auto begin = cache.lengths()[0];
  const Chunk chunk{group.scale, cache.num_special(), begin, begin + key.size(2)};
  const auto keys = list_entries(chunk, key, group.key, group.key_tail).to(query.scalar_type());
  const auto values =
      list_entries(chunk, value, group.value, group.value_tail).to(query.scalar_type());
  const auto weight = layer.options.count_weighting ? entry_weights(chunk, keys) : Tensor();
  return attention_bn(query, keys, values, /*beta=*/{}, /*key_padding_mask=*/{},
                      visible_entries(chunk, query.options()), optional(weight),
                      /*beta_value=*/0.0, /*use_std=*/false, /*eps=*/0.0, /*stats=*/"global",
                      /*is_causal=*/false, /*query_offset=*/{}, /*dropout_p=*/0.0, /*scale=*/{},
                      layer.is_gqa())
      .to(value.scalar_type());
}

}  // namespace

Tensor decode_pooled(const AttentionBNSHImpl& layer, const std::vector<Tensor>& heads,
                     KVCache& cache) {
  const auto &key = heads[1], &value = heads[2];
  const auto query =
      layer.options.normalises() ? normalise_queries(layer, heads[0], key, cache) : heads[0];
  std::vector<HeadGroup> groups;
  std::vector<Tensor> parts;
  for (const auto& group : cache.groups) {
    groups.push_back(group);
    parts.push_back(attend_to_group(
        layer, take_heads(query, 1, group.heads, layer.queries_per_key()),
        take_heads(key, 1, group.heads), take_heads(value, 1, group.heads), cache, group));
  }
  cache.length.add_(key.size(2));
  return merge_heads(parts, groups, layer.queries_per_key());
}

}  // namespace kktorch::detail
