#include "models/layer_tracker.h"

#include <c10/util/ScopeExit.h>

#include <cmath>

namespace kktorch {
namespace {

using torch::Tensor;

void check_bilinear(const AttentionBNSHOptions& options) {
  const auto refuse = [](const auto&... what) {
    TORCH_CHECK(false, "margin_tracker: expected bilinear logits, but got AttentionBNSH ", what...);
  };
  if (options.variant != "softmax") refuse("of variant '", options.variant, "'");
  if (options.conv != "none") refuse("with a convolution of queries and keys");
  if (options.dropout > 0) refuse("with dropout ", options.dropout, " on its probabilities");
}

}  // namespace

/// B first, whatever the layout of the layer; without the graph.
struct LayerTracker::Pass {
  Tensor query, key, value;  // [B, length, width]
  Tensor key_padding;        // bool [B, S], True = ignored
  Tensor mask;               // as given to forward()
  Tensor weights;            // [B, H, L, S]
  Tensor gradient;           // d loss / d outputs [B, H, L, Dv] of the heads
  bool is_causal;
};

namespace {

/// bool [B, L, S]: which keys a query sees.
template <typename Pass>
Tensor visible_keys(const Pass& pass) {
  const auto batch = pass.query.size(0), queries = pass.query.size(1), keys = pass.key.size(1);
  auto visible = torch::ones({batch, queries, keys}, torch::kBool);
  if (pass.key_padding.defined())
    visible = visible.logical_and(pass.key_padding.logical_not().unsqueeze(1).cpu());
  if (pass.mask.defined()) {
    TORCH_CHECK(pass.mask.scalar_type() == torch::kBool,
                "margin_tracker: expected bilinear logits, but got an additive attn_mask");
    TORCH_CHECK(pass.mask.dim() == 2,
                "margin_tracker: expected bilinear logits with one mask for all heads, but got an "
                "attn_mask per head");
    visible = visible.logical_and(pass.mask.logical_not().cpu());
  }
  return pass.is_causal ? visible.tril() : visible;
}

Tensor numbers(const Tensor& t) { return t.detach().to(torch::kCPU, torch::kDouble); }

/// Weight [width of a head, inputs] and bias of a query (0), key (1) or value (2) head.
std::pair<Tensor, Tensor> head_projection(const AttentionBNSHImpl& layer, size_t part,
                                          int64_t head) {
  const auto [weight, bias] = layer.projection(part);
  const int64_t width = part == 2 ? layer.value_head_dim() : layer.head_dim();
  const int64_t begin = (part == 0 ? head : head / layer.queries_per_key()) * width;
  const auto rows = numbers(weight.slice(0, begin, begin + width));
  return {rows, bias.defined() ? numbers(bias.slice(0, begin, begin + width))
                               : torch::zeros({width}, torch::kDouble)};
}

/// The entries of the queries that see a key, in order.
struct VisibleSets {
  Tensor rows;   // bool [B L, S]
  Tensor seen;   // bool [B L]
  Tensor entry;  // [nnz, 2]: row, key
  Tensor row_ptr, tok;

  explicit VisibleSets(const Tensor& visible)
      : rows(visible.flatten(0, 1)), seen(rows.any(1)), entry(rows.nonzero()) {
    const auto counts = rows.sum(1).index({seen});
    row_ptr = torch::cat({torch::zeros({1}, torch::kLong), counts.cumsum(0)});
    const auto input = entry.select(1, 0).floor_divide(visible.size(1));
    tok = input * visible.size(2) + entry.select(1, 1);
  }

  /// values [B, L, S] -> [nnz]
  Tensor select(const Tensor& values) const {
    return values.flatten(0, 1).index({entry.select(1, 0), entry.select(1, 1)});
  }
};

/// d loss / d (scaled logit) [B, L, S] of a head: s (g.v - sum s g.v), g = d loss / d output.
template <typename Pass>
Tensor logit_gradient(const AttentionBNSHImpl& layer, const Pass& pass, int64_t head) {
  const auto [weight, bias] = head_projection(layer, 2, head);
  const auto v = torch::linear(numbers(pass.value), weight, bias);
  const auto s = numbers(pass.weights.select(1, head));
  const auto dot = torch::matmul(numbers(pass.gradient.select(1, head)), v.transpose(1, 2));
  return s * (dot - (s * dot).sum(2, true));
}

}  // namespace

LayerTracker::LayerTracker(AttentionBNSH layer, LayerTrackerOptions options)
    : layer_(std::move(layer)), options_(options) {
  check_bilinear(layer_->options);
}

Tensor LayerTracker::forward(const Tensor& query, const Tensor& key, const Tensor& value,
                             const Tensor& key_padding_mask, const Tensor& attn_mask,
                             bool is_causal) {
  const auto before = layer_->observer;
  const auto pass = std::make_shared<Pass>();
  layer_->observer = [&](const HeadRecord& record) {
    if (before) before(record);
    pass->weights = record.weights.detach();
    pass->key_padding = record.key_padding;
    if (record.outputs.requires_grad())
      record.outputs.register_hook([pass](const Tensor& g) { pass->gradient = g; });
  };
  const auto restore = c10::make_scope_exit([&] { layer_->observer = before; });
  const auto output = std::get<0>(
      layer_->forward(query, key, value, key_padding_mask, false, attn_mask, true, is_causal));
  const auto batched = [&](const Tensor& t) {
    const auto inputs = t.detach();
    return t.dim() == 2                  ? inputs.unsqueeze(0)
           : layer_->options.batch_first ? inputs
                                         : inputs.transpose(0, 1);
  };
  pass->query = batched(query);
  pass->key = batched(key);
  pass->value = batched(value);
  pass->mask = attn_mask;
  pass->is_causal = is_causal;
  pass_ = pass;
  return output;
}

std::vector<MarginRecord> LayerTracker::step(double loss, double loss_star) {
  const torch::NoGradGuard no_grad;
  TORCH_CHECK(pass_, "margin_tracker: expected a forward pass before step, but got none");
  const auto& pass = *pass_;
  const VisibleSets sets(visible_keys(pass));
  const auto query = numbers(pass.query);
  const auto ones = torch::ones({query.size(0), query.size(1), 1}, torch::kDouble);
  MarginTrackerOptions options{.x = numbers(pass.key).flatten(0, 1),
                               .z = torch::cat({query, ones}, 2).flatten(0, 1).index({sets.seen}),
                               .row_ptr = sets.row_ptr,
                               .tok = sets.tok,
                               .nuclear = options_.nuclear,
                               .solve_after = options_.solve_after,
                               .solve_seconds = options_.solve_seconds};
  std::vector<MarginRecord> records;
  for (int64_t head = 0; head < layer_->options.num_heads; ++head) {
    const auto [q_weight, q_bias] = head_projection(*layer_, 0, head);
    MarginStep step{.K = head_projection(*layer_, 1, head).first.t(),
                    .Q = torch::cat({q_weight, q_bias.unsqueeze(1)}, 1).t(),
                    .scale = 1 / std::sqrt(static_cast<double>(layer_->head_dim())),
                    .loss = loss,
                    .loss_star = loss_star};
    if (pass.gradient.defined()) step.dlogits = sets.select(logit_gradient(*layer_, pass, head));
    records.push_back(MarginTracker(options).step(step));
  }
  return records;
}

}  // namespace kktorch
