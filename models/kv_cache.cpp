#include "models/kv_cache.h"

#include <ATen/OpMathType.h>

#include <algorithm>

#include "models/option_checks.h"

namespace kktorch {

using torch::Tensor;

KVCache::KVCache(const KVCacheOptions& o)
    : capacity_(o.capacity), num_special_(o.num_special), lengths_(o.batch, 0) {
  detail::check_positive("KVCache: expected batch", o.batch);
  detail::check_positive("KVCache: expected capacity", o.capacity);
  const auto zeros = [&](int64_t heads, int64_t entries, int64_t width) {
    return torch::zeros({o.batch, heads, entries, width}, o.tensor);
  };
  for (auto& group : detail::group_heads(o.scales)) {
    const auto heads = static_cast<int64_t>(group.heads.size());
    const auto special = std::min(o.num_special, o.capacity);
    const auto entries = special + (o.capacity - special) / group.scale;
    const auto tail = group.scale - 1;
    groups.push_back({std::move(group), zeros(heads, entries, o.head_dim),
                      zeros(heads, entries, o.value_head_dim), zeros(heads, tail, o.head_dim),
                      zeros(heads, tail, o.value_head_dim)});
  }
  length = torch::zeros({o.batch}, o.tensor.dtype(torch::kLong));
  const auto acc = at::toOpMathType(c10::typeMetaToScalarType(o.tensor.dtype()));
  mean = torch::zeros({o.batch, static_cast<int64_t>(o.scales.size()), o.head_dim},
                      o.tensor.dtype(acc));
  m2 = torch::zeros_like(mean);
}

template <typename Function>
void KVCache::transform(const Function& function) {
  for (auto& group : groups) {
    for (auto* t : {&group.key, &group.value, &group.key_tail, &group.value_tail})
      *t = function(*t);
  }
  for (auto* t : {&length, &mean, &m2}) *t = function(*t);
}

void KVCache::reorder(const Tensor& index) {
  TORCH_CHECK(index.dim() == 1 && index.scalar_type() == torch::kLong,
              "KVCache: expected index int64 [new batch], but got ", index.scalar_type(), " ",
              index.sizes());
  const auto on_host = index.cpu().contiguous();
  std::vector<int64_t> lengths;
  for (const auto b : at::IntArrayRef(on_host.data_ptr<int64_t>(), on_host.numel())) {
    TORCH_CHECK_INDEX(0 <= b && b < batch(), "KVCache: expected index in [0, ", batch(),
                      "), but got ", b);
    lengths.push_back(lengths_[b]);
  }
  const auto on_device = index.to(length.device());
  transform([&](const Tensor& t) { return t.index_select(0, on_device); });
  lengths_ = std::move(lengths);
}

KVCache KVCache::sample(int64_t b) const {
  auto one = *this;
  one.transform([&](const Tensor& t) { return t.narrow(0, b, 1); });
  one.lengths_ = {lengths_[b]};
  return one;
}

void KVCache::check_room(const std::vector<int64_t>& tokens) const {
  int64_t need = 0;
  for (size_t b = 0; b < tokens.size(); ++b) need = std::max(need, lengths_[b] + tokens[b]);
  TORCH_CHECK(need <= capacity_, "KVCache: expected capacity >= ", need, ", but got ", capacity_);
}

void KVCache::advance(const std::vector<int64_t>& tokens) {
  for (size_t b = 0; b < tokens.size(); ++b) lengths_[b] += tokens[b];
}

}  // namespace kktorch
