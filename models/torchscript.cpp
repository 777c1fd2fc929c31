// The layers in TorchScript.
#include "models/torchscript.h"

#include "models/torchscript_parts.h"

namespace kktorch {
namespace detail {
namespace {

using torch::jit::Module;

constexpr auto kProjectPacked = R"(
def project(self, query: Tensor, key: Tensor, value: Tensor) -> List[Tensor]:
    if query is key and key is value:
        return torch.linear(query, self.in_proj_weight, self.in_proj_bias).split(self.rows, -1)
    return self.project_each([query, key, value], self.in_proj_weight.split(self.rows))
)";

constexpr auto kProjectSeparate = R"(
def project(self, query: Tensor, key: Tensor, value: Tensor) -> List[Tensor]:
    weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
    return self.project_each([query, key, value], weights)
)";

constexpr auto kProjectEach = R"(
def project_each(self, inputs: List[Tensor], weights: List[Tensor]) -> List[Tensor]:
    bias = self.in_proj_bias
    if bias is None:
        return [torch.linear(inputs[i], weights[i]) for i in range(3)]
    biases = bias.split(self.rows)
    return [torch.linear(inputs[i], weights[i], biases[i]) for i in range(3)]
)";

constexpr auto kAttendBn = R"(
def attend(self, q: Tensor, k: Tensor, v: Tensor, padding: Optional[Tensor],
           mask: Optional[Tensor], is_causal: bool) -> Tensor:
    return kktorch.attention_bn(q, k, v, self.beta, padding, mask, beta_value=self.beta_value,
                                use_std=self.use_std, eps=self.eps, is_causal=is_causal,
                                enable_gqa=self.gqa)
)";

constexpr auto kAttendSoftmax = R"(
def restrict_to(self, mask: Optional[Tensor], visible: Tensor) -> Tensor:
    if mask is None:
        return visible
    if mask.is_floating_point():
        return torch.where(visible, mask, float("-inf"))
    return mask.logical_and(visible)

def attend(self, q: Tensor, k: Tensor, v: Tensor, padding: Optional[Tensor],
           mask: Optional[Tensor], is_causal: bool) -> Tensor:
    if padding is not None:
        padded = padding.unsqueeze(1).unsqueeze(-1)
        k = k.masked_fill(padded, 0)
        v = v.masked_fill(padded, 0)
        mask = self.restrict_to(mask, padding.logical_not().unsqueeze(1).unsqueeze(1))
    if is_causal and mask is not None:
        ones = torch.ones([q.size(2), k.size(2)], device=q.device)
        mask = self.restrict_to(mask, ones.tril() > 0)
    return torch.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal and mask is None,
                                              enable_gqa=self.gqa)
)";

constexpr auto kAttentionForward = R"(
def batch_first_view(self, x: Tensor) -> Tensor:
    if x.dim() == 2:
        return x.unsqueeze(0)
    return x if self.batch_first else x.transpose(0, 1)

def forward(self, query: Tensor, key: Tensor, value: Tensor,
            key_padding_mask: Optional[Tensor] = None, need_weights: bool = False,
            attn_mask: Optional[Tensor] = None, average_attn_weights: bool = True,
            is_causal: bool = False) -> Tuple[Tensor, Optional[Tensor]]:
    batched = query.dim() == 3
    if batched and query is key and key is value:
        x = self.batch_first_view(query)
        parts = self.project(x, x, x)
    else:
        parts = self.project(self.batch_first_view(query), self.batch_first_view(key),
                             self.batch_first_view(value))
    heads = [parts[i].unflatten(-1, [-1, self.widths[i]]).transpose(1, 2) for i in range(3)]
    q, k, v = heads[0], heads[1], heads[2]
    message = "AttentionBNSH: expected as many queries as keys with is_causal, but got {} and {}"
    assert not is_causal or q.size(2) == k.size(2), message.format(q.size(2), k.size(2))

    padding = key_padding_mask if self.stats_mask else None
    if padding is not None and not batched:
        padding = padding.unsqueeze(0)
    mask = attn_mask
    if mask is not None:
        if mask.dim() == 3:
            mask = mask.unflatten(0, [q.size(0), q.size(1)])
        if not mask.is_floating_point():
            mask = mask.logical_not()

    attended = self.attend(q, k, v, padding, mask, is_causal)
    out = self.out_proj.forward(attended.transpose(1, 2).flatten(2))
    if not batched:
        out = out.squeeze(0)
    elif not self.batch_first:
        out = out.transpose(0, 1)
    if not need_weights:
        return out, None
    identity = torch.eye(k.size(2), dtype=v.dtype, device=v.device)
    identity = identity.expand(k.size(0), k.size(1), -1, -1)
    weights = self.attend(q, k, identity, padding, mask, is_causal)
    if average_attn_weights:
        weights = weights.mean(1)
    return out, weights if batched else weights.squeeze(0)
)";

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

Module convert(const AttentionBNSHImpl& module, const UnitPtr& unit) {
  const auto& o = module.options;
  auto script = shell("AttentionBNSH", module, unit);
  none_unless_defined(script, "in_proj_bias", module.in_proj_bias);
  none_unless_defined(script, "beta", module.beta);
  script.register_module("out_proj", convert(*module.out_proj, unit));
  const auto integers = c10::ListType::ofInts();
  script.register_attribute("rows", integers, module.projection_rows());
  script.register_attribute(
      "widths", integers,
      std::vector<int64_t>{module.head_dim(), module.head_dim(), module.value_head_dim()});
  const auto flag = c10::BoolType::get();
  script.register_attribute("batch_first", flag, o.batch_first);
  script.register_attribute("stats_mask", flag, o.stats_mask);
  script.register_attribute("gqa", flag, module.num_kv_heads() != o.num_heads);
  script.register_attribute("use_std", flag, o.use_std);
  const auto number = c10::FloatType::get();
  script.register_attribute("eps", number, o.eps);
  script.register_attribute("beta_value", number, module.beta.defined() ? 1.0 : o.beta_init);
  define(script, {kProjectEach, module.in_proj_weight.defined() ? kProjectPacked : kProjectSeparate,
                  o.variant == "bn" ? kAttendBn : kAttendSoftmax, kAttentionForward});
  return script;
}

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
