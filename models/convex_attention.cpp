#include "models/convex_attention.h"

#include <cmath>
#include <limits>

#include "ops/convex/inputs.h"
#include "ops/convex_attention.h"
#include "ops/simplex_project.h"

namespace kktorch {
namespace {

using torch::Tensor;

/// Rows near uniform attention, in the simplex.
Tensor near_uniform(at::IntArrayRef size) {
  return simplex_project(1. / static_cast<double>(size.back()) + 0.1 * torch::randn(size));
}

/// @throws c10::ValueError naming the row that is farthest from the simplex.
void check_simplex(const char* module, const char* name, const Tensor& w) {
  const torch::NoGradGuard no_grad;
  const auto least = w.amin(-1).flatten(), sums = w.sum(-1).flatten();
  const auto away = torch::maximum(-least, (sums - 1).abs());
  const int64_t row = away.argmax().item<int64_t>();
  const double tolerance = w.scalar_type() == torch::kDouble  ? 1e-9
                           : w.scalar_type() == torch::kFloat ? 1e-5
                                                              : 1e-2;
  TORCH_CHECK_VALUE(away[row].item<double>() <= tolerance, module, ": expected ", name,
                    " rows in the simplex, but got row ", row, " with sum ",
                    sums[row].item<double>(), " and least entry ", least[row].item<double>(),
                    "; call simplex_project, or project()");
}

}  // namespace

ConvexAttentionImpl::ConvexAttentionImpl(int64_t tokens_, int64_t width_, int64_t outputs_,
                                         int64_t heads_, int64_t gates_)
    : tokens(tokens_), width(width_), outputs(outputs_), heads(heads_), gates(gates_) {
  ConvexAttentionImpl::reset();
}

void ConvexAttentionImpl::reset() {
  w1 = register_parameter("w1", near_uniform({heads, tokens}));
  w2 = register_parameter("w2", 0.3 * torch::randn({heads, width}));
  w3 = register_parameter("w3", 0.3 * torch::randn({heads, outputs}));
  const auto left = torch::randn({gates, tokens}), right = torch::randn({gates, width});
  if (gates > 0) {
    left[0].zero_();
    right[0].zero_();
  }
  u1 = register_buffer("u1", left);
  u2 = register_buffer("u2", right);
  gate_id = register_buffer("gate_id", torch::arange(heads) % std::max<int64_t>(1, gates));
}

Tensor ConvexAttentionImpl::forward(const Tensor& X) {
  check_simplex("ConvexAttention", "w1", w1);
  if (gates == 0) return convex_attention(X, w1, w2, w3);
  detail::check_gate_id("ConvexAttention", gate_id, heads, gates);
  const auto scores = (X.matmul(u2.t()) * u1.t()).sum(1);
  return convex_attention(X, w1, w2, w3, scores.ge(0), gate_id);
}

Tensor ConvexAttentionImpl::penalty() const {
  return (w2.square().sum() + w3.abs().sum(1).square().sum()) / 2;
}

void ConvexAttentionImpl::project() {
  const torch::NoGradGuard no_grad;
  w1.copy_(simplex_project(w1));
}

void ConvexAttentionImpl::balance() {
  const torch::NoGradGuard no_grad;
  const auto size2 = w2.norm(2, {1}), size3 = w3.abs().sum(1);
  const auto alive = size2.gt(0).logical_and(size3.gt(0));
  const auto factor = torch::where(alive, (size3 / size2).sqrt(), 0.);
  w2.mul_(factor.unsqueeze(1));
  w3.mul_(torch::where(alive, 1 / factor, 0.).unsqueeze(1));
}

ConvexAttentionSeqImpl::ConvexAttentionSeqImpl(int64_t tokens_, int64_t width_, int64_t outputs_,
                                               int64_t heads_)
    : tokens(tokens_), width(width_), outputs(outputs_), heads(heads_) {
  ConvexAttentionSeqImpl::reset();
}

void ConvexAttentionSeqImpl::reset() {
  W1 = register_parameter("W1", near_uniform({heads, tokens, tokens}));
  W2 = register_parameter("W2", 0.3 * torch::randn({heads, width, outputs}));
  w3 = register_parameter("w3", 0.3 * torch::randn({heads}));
}

Tensor ConvexAttentionSeqImpl::forward(const Tensor& X) {
  check_simplex("ConvexAttentionSeq", "W1", W1);
  return convex_attention_seq(X, W1, W2, w3);
}

Tensor ConvexAttentionSeqImpl::penalty() const {
  return (W2.abs().sum({1, 2}).square().sum() + w3.square().sum()) / 2;
}

void ConvexAttentionSeqImpl::project() {
  const torch::NoGradGuard no_grad;
  W1.copy_(simplex_project(W1));
}

SoftmaxAttentionImpl::SoftmaxAttentionImpl(int64_t width_, int64_t outputs_, int64_t heads_,
                                           int64_t head_width_, double qk_scale_,
                                           int64_t readout_row_)
    : width(width_),
      outputs(outputs_),
      heads(heads_),
      head_width(head_width_ > 0 ? head_width_ : width_),
      qk_scale(qk_scale_),
      readout_row(readout_row_) {
  SoftmaxAttentionImpl::reset();
}

void SoftmaxAttentionImpl::reset() {
  const double scale = 1 / std::sqrt(static_cast<double>(width));
  const auto projection = [&] { return scale * torch::randn({heads, width, head_width}); };
  Q = register_parameter("Q", projection());
  K = register_parameter("K", projection());
  V = register_parameter("V", projection());
  O = register_parameter(
      "O", torch::randn({heads, head_width, outputs}) / std::sqrt(static_cast<double>(head_width)));
}

Tensor SoftmaxAttentionImpl::maps(const Tensor& X, const Tensor& key_padding_mask) const {
  // One row asks: its query, taken back to the width of the tokens, spares the keys.
  const auto query = X.select(1, readout_row).matmul(Q).matmul(K.transpose(1, 2));  // [h, N, d]
  auto logits = qk_scale * query.transpose(0, 1).matmul(X.transpose(1, 2));         // [N, h, n]
  if (key_padding_mask.defined())
    logits =
        logits.masked_fill(key_padding_mask.unsqueeze(1), -std::numeric_limits<double>::infinity());
  return logits.softmax(-1);
}

Tensor SoftmaxAttentionImpl::forward(const Tensor& X, const Tensor& key_padding_mask) {
  const auto mixed = maps(X, key_padding_mask).matmul(X).transpose(0, 1);  // [h, N, d]
  return mixed.matmul(V).matmul(O).sum(0);
}

}  // namespace kktorch
