// AttentionBNSH::decode. Heads that do not pool leave it to the op (ops/attention_bn_decode.h),
// heads that do to a composition (models/scaled_decode.h).
#include <algorithm>

#include "models/attention_bnsh.h"
#include "models/attention_checks.h"
#include "models/attention_variants.h"
#include "models/scaled_decode.h"
#include "ops/attention_bn_decode.h"

namespace kktorch {
namespace {

using detail::optional;
using torch::Tensor;

/// A chunk of one length for all samples of `cache`, which advances except for lengths().
Tensor decode_heads(const AttentionBNSHImpl& layer, const std::vector<Tensor>& heads,
                    KVCache& cache) {
  const auto& o = layer.options;
  if (o.pools()) return detail::decode_pooled(layer, heads, cache);
  const auto beta = layer.beta.defined() ? layer.beta.detach() : Tensor();
  auto& tokens = cache.groups[0];
  return attention_bn_decode(heads[0], heads[1], heads[2], tokens.key, tokens.value, cache.length,
                             cache.mean, cache.m2, optional(beta), layer.beta_value(),
                             o.normalises() && o.use_std, o.eps, /*scale=*/{}, layer.is_gqa());
}

/// The op wants chunks of one length, pooling also one position for all samples.
bool is_uniform(const KVCache& cache, const std::vector<int64_t>& valid, int64_t T, bool pools) {
  const auto& lengths = cache.lengths();
  const auto all = [](const std::vector<int64_t>& v, int64_t n) {
    return std::all_of(v.begin(), v.end(), [n](int64_t i) { return i == n; });
  };
  return all(valid, T) && (!pools || all(lengths, lengths[0]));
}

Tensor decode_ragged(const AttentionBNSHImpl& layer, const std::vector<Tensor>& heads,
                     KVCache& cache, const std::vector<int64_t>& valid) {
  const auto& query = heads[0];
  auto out = torch::zeros({query.size(0), query.size(1), query.size(2), layer.value_head_dim()},
                          query.options());
  for (int64_t b = 0; b < query.size(0); ++b) {
    if (valid[b] == 0) continue;
    std::vector<Tensor> own;
    for (const auto& t : heads) own.push_back(t.narrow(0, b, 1).narrow(2, 0, valid[b]));
    auto state = cache.sample(b);
    out.narrow(0, b, 1).narrow(2, 0, valid[b]).copy_(decode_heads(layer, own, state));
  }
  return out;
}

}  // namespace

KVCache AttentionBNSHImpl::make_cache(int64_t batch, int64_t capacity) const {
  detail::check_decodes(options);
  return KVCache({.batch = batch,
                  .capacity = capacity,
                  .head_dim = head_dim(),
                  .value_head_dim = value_head_dim(),
                  .scales = scales(),
                  .num_special = options.pools() ? options.num_special : 0,
                  .tensor = out_proj->weight.options().requires_grad(false)});
}

Tensor AttentionBNSHImpl::decode(const Tensor& x_new, KVCache& cache,
                                 const std::vector<int64_t>& valid) {
  detail::check_decodes(options);
  detail::check_inputs(options, x_new, x_new, x_new, {}, {}, /*is_causal=*/true);
  const auto B = x_new.size(options.batch_first ? 0 : 1),
             T = x_new.size(options.batch_first ? 1 : 0);
  TORCH_CHECK(x_new.dim() == 3 && B == cache.batch() && T >= 1,
              "AttentionBNSH: expected x_new of 3 dimensions, a batch of ", cache.batch(),
              " as the cache, and one token or more, but got ", x_new.sizes());
  const auto counts = valid.empty() ? std::vector<int64_t>(B, T) : valid;
  TORCH_CHECK(
      static_cast<int64_t>(counts.size()) == B &&
          std::all_of(counts.begin(), counts.end(), [T](int64_t n) { return 0 <= n && n <= T; }),
      "AttentionBNSH: expected ", B, " numbers of valid tokens in 0 ... ", T, ", but got ",
      at::IntArrayRef(counts));
  cache.check_room(counts);

  torch::NoGradGuard no_grad;
  const auto x = options.batch_first ? x_new : x_new.transpose(0, 1);
  const auto heads = project(x, x, x);
  const auto attended = is_uniform(cache, counts, T, options.pools())
                            ? decode_heads(*this, heads, cache)
                            : decode_ragged(*this, heads, cache, counts);
  cache.advance(counts);
  const auto out = out_proj->forward(attended.transpose(1, 2).flatten(2));
  return options.batch_first ? out : out.transpose(0, 1);
}

}  // namespace kktorch
