#include "models/torchscript.h"

#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/frontend/sugared_value.h>

#include <cmath>

// The sources below are the forward functions of the C++ modules, without dropout and without the
// checks that an op repeats. What an option decides once and for all is decided here, by the choice
// of a source, not in the script.
namespace kktorch {
namespace {

using c10::IValue;
using torch::Tensor;
using torch::jit::Module;
using UnitPtr = std::shared_ptr<torch::jit::CompilationUnit>;

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

constexpr auto kLinear = R"(
def forward(self, x: Tensor) -> Tensor:
    return torch.linear(x, self.weight, self.bias)
)";

constexpr auto kLayerNorm = R"(
def forward(self, x: Tensor) -> Tensor:
    return torch.layer_norm(x, [x.size(-1)], self.weight, self.bias, self.eps)
)";

constexpr auto kBatchNorm = R"(
def forward(self, x: Tensor) -> Tensor:
    return torch.batch_norm(x.reshape(-1, x.size(-1)), self.weight, self.bias, self.running_mean,
                            self.running_var, False, 0.0, self.eps, True).view_as(x)
)";

constexpr auto kActivateGelu = R"(
def activate(self, x: Tensor) -> Tensor:
    return torch.gelu(x)
)";

constexpr auto kActivateRelu = R"(
def activate(self, x: Tensor) -> Tensor:
    return torch.relu(x)
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

/// Finds torch.* (aten) and kktorch.* in a source.
struct OpResolver : torch::jit::NativeResolver {
  std::shared_ptr<torch::jit::SugaredValue> resolveValue(
      const std::string& name, torch::jit::GraphFunction& function,
      const torch::jit::SourceRange& location) override {
    if (name == "kktorch") return std::make_shared<torch::jit::BuiltinModule>("kktorch");
    return NativeResolver::resolveValue(name, function, location);
  }
};

void define(Module& script, std::initializer_list<std::string> sources) {
  const auto resolver = std::make_shared<OpResolver>();
  for (const auto& source : sources) script.define(source, resolver);
}

/// An empty script module that has the parameters and buffers of `module` (not of its submodules).
/// All modules of one model share `unit`, in which equal class names are told apart.
Module shell(const char* name, const torch::nn::Module& module, const UnitPtr& unit) {
  Module script(std::string("__torch__.kktorch.") + name, unit, /*shouldMangle=*/true);
  script.register_attribute("training", c10::BoolType::get(), false);
  for (const auto& entry : module.named_parameters(/*recurse=*/false)) {
    script.register_parameter(entry.key(), entry.value(), /*is_buffer=*/false);
  }
  for (const auto& entry : module.named_buffers(/*recurse=*/false)) {
    script.register_buffer(entry.key(), entry.value());
  }
  return script;
}

/// Gives the script `None` where the module has no such parameter.
void none_unless_defined(Module& script, const std::string& name, const Tensor& parameter) {
  if (!parameter.defined()) {
    script.register_attribute(name, c10::OptionalType::ofTensor(), IValue());
  }
}

Module convert(const torch::nn::LinearImpl& linear, const UnitPtr& unit) {
  auto script = shell("Linear", linear, unit);
  none_unless_defined(script, "bias", linear.bias);
  define(script, {kLinear});
  return script;
}

Module convert(const TokenNormImpl& norm, const UnitPtr& unit) {
  auto script = shell("TokenNorm", norm, unit);
  script.register_attribute("eps", c10::FloatType::get(), TokenNormImpl::kEps);
  define(script, {norm.kind == "layer" ? kLayerNorm : kBatchNorm});
  return script;
}

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
  define(script, {layer.options.activation == "relu" ? kActivateRelu : kActivateGelu,
                  kEncoderBranches, layer.options.norm_first ? kEncoderPreNorm : kEncoderPostNorm});
  return script;
}

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

Module convert(const TimeSeriesClassifierImpl& model, const UnitPtr& unit) {
  const auto& o = model.options;
  auto script = shell("TimeSeriesClassifier", model, unit);
  script.register_module("embedding", convert(*model.embedding, unit));
  script.register_module("layers", convert_layers(*model.layers, unit));
  script.register_module("head", convert(*model.head, unit));
  script.register_attribute("max_length", c10::IntType::get(), o.max_length);
  script.register_attribute("ragged_masks", c10::BoolType::get(), o.ragged_masks);
  script.register_attribute("embedding_scale", c10::FloatType::get(), std::sqrt(o.width));
  define(script, {o.activation == "relu" ? kActivateRelu : kActivateGelu, kClassifierForward});
  return script;
}

template <typename ModuleImpl>
Module convert_alone(const ModuleImpl& module) {
  return convert(module, std::make_shared<torch::jit::CompilationUnit>());
}

}  // namespace

Module to_torchscript(const AttentionBNSHImpl& module) { return convert_alone(module); }
Module to_torchscript(const EncoderLayerImpl& module) { return convert_alone(module); }
Module to_torchscript(const TimeSeriesClassifierImpl& module) { return convert_alone(module); }

}  // namespace kktorch
