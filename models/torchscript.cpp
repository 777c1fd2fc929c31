#include "models/torchscript.h"

#include <cmath>

#include "models/torchscript_parts.h"

namespace kktorch {
namespace detail {
namespace {

using torch::jit::Module;

constexpr auto kEncoderBranches = R"(
def attention(self, x: Tensor, padding: Optional[Tensor], attn_mask: Optional[Tensor],
              is_causal: bool) -> Tensor:
    return self.self_attn.forward(x, x, x, padding, False, attn_mask, True, is_causal)[0]

def feed_forward(self, x: Tensor) -> Tensor:
    return self.linear2.forward(self.activate(self.linear1.forward(x)))
)";

constexpr auto kEncoderPreNorm = R"(
def forward(self, x: Tensor, key_padding_mask: Optional[Tensor] = None,
            attn_mask: Optional[Tensor] = None, is_causal: bool = False) -> Tensor:
    y = x + self.attention(self.norm1.forward(x), key_padding_mask, attn_mask, is_causal)
    return y + self.feed_forward(self.norm2.forward(y))
)";

constexpr auto kEncoderPostNorm = R"(
def forward(self, x: Tensor, key_padding_mask: Optional[Tensor] = None,
            attn_mask: Optional[Tensor] = None, is_causal: bool = False) -> Tensor:
    y = self.norm1.forward(x + self.attention(x, key_padding_mask, attn_mask, is_causal))
    return self.norm2.forward(y + self.feed_forward(y))
)";

constexpr auto kClassifierForward = R"(
def forward(self, x: Tensor, padding_mask: Optional[Tensor] = None) -> Tensor:
    message = "TimeSeriesClassifier: expected x [B, L <= {}, C], but got {}"
    assert x.size(1) <= self.max_length, message.format(self.max_length, x.size())
    h = (x.to(self.input_mean.dtype) - self.input_mean) / self.input_std
    padding = padding_mask
    if padding is not None:
        h = h.masked_fill(padding.unsqueeze(-1), 0)
    if not self.ragged_masks:
        if padding is None:
            padding = torch.zeros(x.size()[:2], device=x.device) > 0
        missing = self.max_length - x.size(1)
        h = torch.constant_pad_nd(h, [0, 0, 0, missing], 0)
        padding = torch.constant_pad_nd(padding, [0, missing], 1)
    h = self.embedding.forward(h) * self.embedding_scale + self.position[:h.size(1)]
    h = self.activate(self.layers.forward(h, padding))
    if padding is not None:
        h = h.masked_fill(padding.unsqueeze(-1), 0)
    h = torch.constant_pad_nd(h, [0, 0, 0, self.max_length - h.size(1)], 0)
    return self.head.forward(h.flatten(1))
)";

}  // namespace

Module convert(const EncoderLayerImpl& layer, const UnitPtr& unit) {
  auto script = shell("EncoderLayer", layer, unit);
  script.register_module("self_attn", convert(*layer.self_attn, unit));
  script.register_module("linear1", convert(*layer.linear1, unit));
  script.register_module("linear2", convert(*layer.linear2, unit));
  script.register_module("norm1", convert(*layer.norm1, unit));
  script.register_module("norm2", convert(*layer.norm2, unit));
  define(script, {activation_source(layer.options.activation), kEncoderBranches,
                  layer.options.norm_first ? kEncoderPreNorm : kEncoderPostNorm});
  return script;
}

namespace {

/// The layers one after the other. A script has no loop over submodules of different classes: the
/// calls are written out.
Module convert_layers(const torch::nn::ModuleListImpl& layers, const UnitPtr& unit) {
  auto script = shell("Layers", layers, unit);
  std::string source = "def forward(self, x: Tensor, padding: Optional[Tensor]) -> Tensor:\n";
  for (const auto& entry : layers.named_children()) {
    script.register_module(entry.key(), convert(*entry.value()->as<EncoderLayer>(), unit));
    source += "    x = getattr(self, \"" + entry.key() + "\").forward(x, padding)\n";
  }
  define(script, {source + "    return x\n"});
  return script;
}

}  // namespace

Module convert(const TimeSeriesClassifierImpl& model, const UnitPtr& unit) {
  const auto& o = model.options;
  auto script = shell("TimeSeriesClassifier", model, unit);
  script.register_module("embedding", convert(*model.embedding, unit));
  script.register_module("layers", convert_layers(*model.layers, unit));
  script.register_module("head", convert(*model.head, unit));
  script.register_attribute("max_length", c10::IntType::get(), o.max_length);
  script.register_attribute("ragged_masks", c10::BoolType::get(), o.ragged_masks);
  script.register_attribute("embedding_scale", c10::FloatType::get(), std::sqrt(o.width));
  define(script, {activation_source(o.activation), kClassifierForward});
  return script;
}

}  // namespace detail

torch::jit::Module to_torchscript(const AttentionBNSHImpl& module) {
  return detail::convert(module, detail::new_unit());
}

torch::jit::Module to_torchscript(const EncoderLayerImpl& module) {
  return detail::convert(module, detail::new_unit());
}

torch::jit::Module to_torchscript(const TimeSeriesClassifierImpl& module) {
  return detail::convert(module, detail::new_unit());
}

}  // namespace kktorch
