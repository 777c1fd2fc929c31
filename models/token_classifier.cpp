#include "models/token_classifier.h"

#include "models/classifier_inputs.h"
#include "models/option_checks.h"

namespace kktorch {
namespace {

using torch::Tensor;

constexpr auto kName = "TokenClassifier";

void check_shapes(const TokenClassifierOptions& o, const Tensor& ids, const Tensor& padding) {
  TORCH_CHECK(ids.dim() == 2 && ids.scalar_type() == torch::kLong && ids.size(1) >= 1 &&
                  ids.size(1) <= o.max_length,
              "TokenClassifier: expected ids int64 [B, 1 <= L <= ", o.max_length, "], but got ",
              ids.scalar_type(), " ", ids.sizes());
  detail::check_padding_mask(kName, padding, ids);
}

/// Looked up unchecked, a wrong id ends a CUDA context.
void check_values(const TokenClassifierOptions& o, const Tensor& ids, const Tensor& padding) {
  if (ids.numel() == 0) return;
  const auto least = ids.min().item<int64_t>(), largest = ids.max().item<int64_t>();
  TORCH_CHECK_INDEX(0 <= least && largest < o.vocabulary, "TokenClassifier: expected ids in [0, ",
                    o.vocabulary, "), but got ", least, " to ", largest);
  if (!padding.defined()) return;
  const auto empty = padding.all(1);
  TORCH_CHECK(
      !empty.any().item<bool>(),
      "TokenClassifier: expected a valid token in every sequence, but got none in sequence ",
      empty.to(torch::kInt).argmax().item<int64_t>());
}

}  // namespace

TokenClassifierImpl::TokenClassifierImpl(const TokenClassifierOptions& options_)
    : options(options_) {
  const std::string expected = "TokenClassifier: expected ";
  detail::check_positive(expected + "vocabulary", options.vocabulary);
  detail::check_positive(expected + "classes", options.classes);
  detail::check_positive(expected + "max_length", options.max_length);
  detail::check_positive(expected + "head_width", options.head_width);
  detail::check_positive(expected + "width", options.encoder.width);
  TokenClassifierImpl::reset();
}

void TokenClassifierImpl::reset() {
  const auto& o = options;
  embedding = register_module("embedding", torch::nn::Embedding(o.vocabulary, o.encoder.width));
  encoder = register_module("encoder", Encoder(o.encoder, TokenLayout{.length = o.max_length}));
  hidden = register_module("hidden", torch::nn::Linear(o.encoder.width, o.head_width));
  head = register_module("head", torch::nn::Linear(o.head_width, o.classes));
}

Tensor TokenClassifierImpl::forward(const Tensor& ids, const Tensor& padding_mask) {
  check_shapes(options, ids, padding_mask);
  const bool padded = padding_mask.defined();
  const auto tokens = padded ? ids.masked_fill(padding_mask, 0) : ids;
  check_values(options, tokens, padding_mask);
  const auto h = encoder(embedding(tokens), padding_mask);
  if (!padded) return head(torch::relu(hidden(h.mean(1))));
  const auto count = padding_mask.logical_not().sum(1, /*keepdim=*/true);
  const auto mean = h.masked_fill(padding_mask.unsqueeze(-1), 0).sum(1) / count;
  return head(torch::relu(hidden(mean)));
}

void TokenClassifierImpl::pretty_print(std::ostream& stream) const {
  stream << "kktorch::TokenClassifier(vocabulary=" << options.vocabulary
         << ", classes=" << options.classes << ", max_length=" << options.max_length
         << ", head_width=" << options.head_width << ")";
}

}  // namespace kktorch
