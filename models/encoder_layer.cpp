#include "models/encoder_layer.h"

#include "models/option_checks.h"

namespace kktorch {

using torch::Tensor;

Tensor activate(const Tensor& x, const std::string& activation) {
  return activation == "relu" ? torch::relu(x) : torch::gelu(x);
}

EncoderLayerImpl::EncoderLayerImpl(const EncoderLayerOptions& options_) : options(options_) {
  detail::check_positive("EncoderLayer: expected ffn", options.ffn);
  detail::check_probability("EncoderLayer: expected dropout", options.dropout);
  detail::check_choice("EncoderLayer: expected activation", options.activation, {"gelu", "relu"});
  options.attention.batch_first = true;
  EncoderLayerImpl::reset();
}

void EncoderLayerImpl::reset() {
  const auto width = options.attention.embed_dim;
  self_attn = register_module("self_attn", AttentionBNSH(options.attention));
  linear1 = register_module("linear1", torch::nn::Linear(width, options.ffn));
  linear2 = register_module("linear2", torch::nn::Linear(options.ffn, width));
  norm1 = register_module("norm1", TokenNorm(options.norm, width));
  norm2 = register_module("norm2", TokenNorm(options.norm, width));
}

Tensor EncoderLayerImpl::forward(const Tensor& x, const Tensor& key_padding_mask,
                                 const Tensor& attn_mask, bool is_causal) {
  return run(x, key_padding_mask, [&](const Tensor& t) {
    return std::get<0>(self_attn(t, t, t, key_padding_mask, false, attn_mask, true, is_causal));
  });
}

Tensor EncoderLayerImpl::decode(const Tensor& x_new, KVCache& cache,
                                const std::vector<int64_t>& valid) {
  TORCH_CHECK(!is_training(),
              "EncoderLayer: expected evaluation mode to decode, but got training mode");
  torch::NoGradGuard no_grad;
  return run(x_new, {}, [&](const Tensor& t) { return self_attn->decode(t, cache, valid); });
}

Tensor EncoderLayerImpl::run(const Tensor& x, const Tensor& padding, const Branch& attention) {
  const auto dropout = [this](const Tensor& t) {
    return torch::dropout(t, options.dropout, is_training());
  };
  const auto feed_forward = [&](const Tensor& t) {
    return dropout(linear2(dropout(activate(linear1(t), options.activation))));
  };
  if (options.norm_first) {
    const auto y = x + dropout(attention(norm1(x, padding)));
    return y + feed_forward(norm2(y, padding));
  }
  const auto y = norm1(x + dropout(attention(x)), padding);
  return norm2(y + feed_forward(y), padding);
}

void EncoderLayerImpl::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << "kktorch::EncoderLayer(ffn=" << options.ffn
         << ", dropout=" << options.dropout << ", norm=" << options.norm
         << ", norm_first=" << options.norm_first << ", activation=" << options.activation << ")";
}

}  // namespace kktorch
