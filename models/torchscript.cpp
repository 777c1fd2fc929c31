// The layers in TorchScript.
#include "models/torchscript.h"

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

}  // namespace detail

torch::jit::Module to_torchscript(const AttentionBNSHImpl& module) {
  return detail::convert(module, detail::new_unit());
}

torch::jit::Module to_torchscript(const EncoderLayerImpl& module) {
  return detail::convert(module, detail::new_unit());
}

}  // namespace kktorch
