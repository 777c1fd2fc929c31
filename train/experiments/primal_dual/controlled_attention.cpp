#include "train/experiments/primal_dual/controlled_attention.h"

#include "models/encoder_layer.h"
#include "train/loop/checkpoint.h"

namespace kktorch::primal_dual {

ControlledAttention::ControlledAttention(const AttentionBNSHImpl& original, QueryKeyOptions control)
    : AttentionBNSHImpl(original.options) {
  TORCH_CHECK_VALUE(options.variant == "softmax",
                    "ControlledAttention: expected variant softmax, but got ", options.variant);
  load_model_state(*this, model_state(original));
  control_ = register_module(
      "control", std::make_shared<QueryKeyControl>(
                     control, at::IntArrayRef{options.num_heads, 1, head_dim()}, torch::kFloat));
}

std::vector<at::Tensor> ControlledAttention::project(const at::Tensor& query, const at::Tensor& key,
                                                     const at::Tensor& value) const {
  auto heads = AttentionBNSHImpl::project(query, key, value);
  std::tie(heads[0], heads[1]) = control_->forward(heads[0], heads[1]);
  return heads;
}

void add_control(torch::nn::Module& model, QueryKeyOptions control) {
  for (const auto& module : model.modules(/*include_self=*/false)) {
    auto* layer = module->as<EncoderLayer>();
    if (!layer) continue;
    const std::shared_ptr<AttentionBNSHImpl> controlled =
        std::make_shared<ControlledAttention>(*layer->self_attn, control);
    layer->self_attn = AttentionBNSH(controlled);
    layer->replace_module("self_attn", layer->self_attn);
  }
}

}  // namespace kktorch::primal_dual
