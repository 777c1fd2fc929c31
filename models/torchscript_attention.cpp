// AttentionBNSH in TorchScript: its forward, its projections, and the attention of its variant.
#include "models/head_groups.h"
#include "models/torchscript_parts.h"

namespace kktorch::detail {
namespace {

using torch::jit::Module;

// ---- projections ----

constexpr auto kWeightsPacked = R"(
def weights(self) -> List[Tensor]:
    return self.in_proj_weight.split(self.rows)
)";

constexpr auto kWeightsSeparate = R"(
def weights(self) -> List[Tensor]:
    return [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
)";

constexpr auto kProjectEach = R"(
def bias(self, which: int) -> Optional[Tensor]:
    packed = self.in_proj_bias
    result: Optional[Tensor] = None
    if packed is not None:
        result = packed.split(self.rows)[which]
    return result

def project(self, query: Tensor, key: Tensor, value: Tensor) -> List[Tensor]:
    inputs, weights = [query, key, value], self.weights()
    return [torch.linear(inputs[i], weights[i], self.bias(i)) for i in range(3)]

def split_heads(self, t: Tensor, which: int) -> Tensor:
    return t.unflatten(-1, [-1, self.widths[which]]).transpose(1, 2)
)";

// One matrix product instead of three where it can be.
constexpr auto kProjectPacked = R"(
def project_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> List[Tensor]:
    if query is key and key is value:
        return torch.linear(query, self.in_proj_weight, self.in_proj_bias).split(self.rows, -1)
    return self.project(query, key, value)
)";

constexpr auto kProjectSeparate = R"(
def project_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> List[Tensor]:
    return self.project(query, key, value)
)";

// ---- convolution of queries and keys ----

constexpr auto kNoConvolution = R"(
def convolve(self, q: Tensor, k: Tensor, padding: Optional[Tensor], same_tokens: bool,
             is_causal: bool) -> Tuple[Tensor, Tensor]:
    return q, k
)";

constexpr auto kConvolution = R"(
def convolve(self, q: Tensor, k: Tensor, padding: Optional[Tensor], same_tokens: bool,
             is_causal: bool) -> Tuple[Tensor, Tensor]:
    q = self.conv_q.forward(q, padding if same_tokens else None, is_causal)
    return q, self.conv_k.forward(k, padding, is_causal)
)";

constexpr auto kConv1d = R"(
def convolve(self, y: Tensor, is_causal: bool) -> Tensor:
    if is_causal:
        y = torch.constant_pad_nd(y, [2, 0])
        return torch.conv1d(y, self.weight.roll(1, -1), None, 1, 0, 1, y.size(1))
    return torch.conv1d(y, self.weight, None, 1, 1, 1, y.size(1))
)";

constexpr auto kConv2d = R"(
def convolve(self, y: Tensor, is_causal: bool) -> Tensor:
    assert not is_causal, "AttentionBNSH: expected is_causal=false with conv '2d', but got true"
    grid = y.unflatten(2, [y.size(2) // self.columns, self.columns])
    return torch.conv2d(grid, self.weight, None, 1, 1, 1, y.size(1)).flatten(2)
)";

constexpr auto kTokenConv = R"(
def forward(self, x: Tensor, padding: Optional[Tensor], is_causal: bool) -> Tensor:
    if padding is not None:
        x = x.masked_fill(padding.unsqueeze(1).unsqueeze(-1), 0)
    if x.size(2) <= self.num_special:
        return x
    y = self.convolve(x[:, :, self.num_special:].transpose(2, 3).flatten(1, 2), is_causal)
    y = y.unflatten(1, [x.size(1), x.size(3)]).transpose(2, 3)
    return torch.cat([x[:, :, :self.num_special], y], 2)
)";

// ---- attention of projected heads ----

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

constexpr auto kAttendToKeys = R"(
def attend_to_keys(self, q: Tensor, k: Tensor, v: Tensor, beta: Optional[Tensor],
                   weight: Optional[Tensor], padding: Optional[Tensor], mask: Optional[Tensor],
                   is_causal: bool) -> Tensor:
    return kktorch.attention_bn(q, k, v, beta, padding, mask, key_weight=weight,
                                beta_value=self.beta_value, use_std=self.use_std, eps=self.eps,
                                is_causal=is_causal, enable_gqa=self.gqa)
)";

constexpr auto kAttendToKeysLinear = R"(
def attend_to_keys(self, q: Tensor, k: Tensor, v: Tensor, beta: Optional[Tensor],
                   weight: Optional[Tensor], padding: Optional[Tensor], mask: Optional[Tensor],
                   is_causal: bool) -> Tensor:
    message = "AttentionBNSH: expected no attn_mask with a linear variant, but got one"
    assert mask is None, message
    return kktorch.linear_attention(q, k, v, beta, padding, key_weight=weight, bn=self.bn,
                                    beta_value=self.beta_value, use_std=self.use_std, eps=self.eps,
                                    is_causal=is_causal, enable_gqa=self.gqa)
)";

constexpr auto kAttend = R"(
def attend(self, q: Tensor, k: Tensor, v: Tensor, padding: Optional[Tensor],
           mask: Optional[Tensor], is_causal: bool) -> Tensor:
    return self.attend_to_keys(q, k, v, self.beta, None, padding, mask, is_causal)
)";

constexpr auto kAttendScaled = R"(
def attend(self, q: Tensor, k: Tensor, v: Tensor, padding: Optional[Tensor],
           mask: Optional[Tensor], is_causal: bool) -> Tensor:
    return kktorch.attention_sh(q, k, v, self.scales, self.beta, padding, mask, bn=self.bn,
                                count_weighting=self.count_weighting, tail=self.tail,
                                num_special=self.num_special, beta_value=self.beta_value,
                                use_std=self.use_std, eps=self.eps, is_causal=is_causal,
                                enable_gqa=self.gqa)
)";

constexpr auto kAttendScaledLinear = R"(
def attend(self, q: Tensor, k: Tensor, v: Tensor, padding: Optional[Tensor],
           mask: Optional[Tensor], is_causal: bool) -> Tensor:
    message = "AttentionBNSH: expected no attn_mask and is_causal=false with a pooling linear variant"
    assert mask is None and not is_causal, message
    parts: List[Tensor] = []
    for i in range(len(self.group_scales)):
        scale, heads = self.group_scales[i], self.group_heads[i]
        keys, empty, weight = self.pool(self.take_heads(k, 1, heads, 1), scale, padding)
        values = self.pool(self.take_heads(v, 1, heads, 1), scale, padding)[0]
        parts.append(self.attend_group(q, heads, keys, values, empty, weight))
    return self.merge_heads(parts)
)";

// ---- groups of heads of one scale ----

constexpr auto kGroups = R"(
def take_heads(self, t: Tensor, dim: int, heads: List[int], rows: int) -> Tensor:
    if heads == [heads[0] + i for i in range(len(heads))]:
        return t.narrow(dim, heads[0] * rows, len(heads) * rows)
    return torch.cat([t.narrow(dim, head * rows, rows) for head in heads], dim)

def merge_heads(self, parts: List[Tensor]) -> Tensor:
    together = torch.cat([part.transpose(1, 2) for part in parts], 2)
    return self.take_heads(together, 2, self.head_places, self.queries_per_key).transpose(1, 2)

def pool(self, tokens: Tensor, scale: int,
         padding: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
    if scale == 1:
        return tokens, padding, None
    windows, counts = kktorch.token_pool(tokens, scale, padding, tail=self.tail,
                                         num_special=self.num_special)
    return (windows, counts == 0 if padding is not None else None,
            counts if self.count_weighting else None)

def attend_group(self, q: Tensor, heads: List[int], k: Tensor, v: Tensor,
                 padding: Optional[Tensor], weight: Optional[Tensor]) -> Tensor:
    beta = self.beta
    if beta is not None:
        if beta.dim() == 1:
            beta = self.take_heads(beta, 0, heads, self.beta_rows)
    q = self.take_heads(q, 1, heads, self.queries_per_key)
    return self.attend_to_keys(q, k, v, beta, weight, padding, None, False)
)";

constexpr auto kPooledInputs = R"(
def project_heads(self, tokens: Tensor, which: int, heads: List[int]) -> Tensor:
    width = self.widths[which]
    bias = self.bias(which)
    if bias is not None:
        bias = self.take_heads(bias, 0, heads, width)
    weight = self.take_heads(self.weights()[which], 0, heads, width)
    return self.split_heads(torch.linear(tokens, weight, bias), which)

def attend_inputs(self, query: Tensor, key: Tensor, value: Tensor, padding: Optional[Tensor],
                  mask: Optional[Tensor], is_causal: bool,
                  need_weights: bool) -> Tuple[Tensor, Optional[Tensor]]:
    if is_causal or mask is not None or need_weights:
        return self.attend_projected(query, key, value, padding, mask, is_causal, need_weights)
    q = self.split_heads(torch.linear(query, self.weights()[0], self.bias(0)), 0)
    parts: List[Tensor] = []
    for i in range(len(self.group_scales)):
        scale, heads = self.group_scales[i], self.group_heads[i]
        keys, empty, weight = self.pool(key, scale, padding)
        values = keys if value is key else self.pool(value, scale, padding)[0]
        keys = self.project_heads(keys, 1, heads)
        values = self.project_heads(values, 2, heads)
        parts.append(self.attend_group(q, heads, keys, values, empty, weight))
    return self.merge_heads(parts), None
)";

// ---- forward ----

constexpr auto kProjectedInputs = R"(
def attend_inputs(self, query: Tensor, key: Tensor, value: Tensor, padding: Optional[Tensor],
                  mask: Optional[Tensor], is_causal: bool,
                  need_weights: bool) -> Tuple[Tensor, Optional[Tensor]]:
    return self.attend_projected(query, key, value, padding, mask, is_causal, need_weights)
)";

constexpr auto kAttendProjected = R"(
def attend_projected(self, query: Tensor, key: Tensor, value: Tensor, padding: Optional[Tensor],
                     mask: Optional[Tensor], is_causal: bool,
                     need_weights: bool) -> Tuple[Tensor, Optional[Tensor]]:
    parts = self.project_inputs(query, key, value)
    heads = [self.split_heads(parts[i], i) for i in range(3)]
    q, k = self.convolve(heads[0], heads[1], padding, query is key, is_causal)
    v = heads[2]
    attended = self.attend(q, k, v, padding, mask, is_causal)
    if not need_weights:
        return attended, None
    identity = torch.eye(k.size(2), dtype=v.dtype, device=v.device)
    identity = identity.expand(k.size(0), k.size(1), -1, -1)
    return attended, self.attend(q, k, identity, padding, mask, is_causal)
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
    x = self.batch_first_view(query)
    memory = x if key is query else self.batch_first_view(key)
    content = memory if value is key else self.batch_first_view(value)
    message = "AttentionBNSH: expected as many queries as keys with is_causal, but got {} and {}"
    assert not is_causal or x.size(1) == memory.size(1), message.format(x.size(1), memory.size(1))

    padding = key_padding_mask if self.stats_mask else None
    if padding is not None and not batched:
        padding = padding.unsqueeze(0)
    mask = attn_mask
    if mask is not None:
        if mask.dim() == 3:
            mask = mask.unflatten(0, [x.size(0), -1])
        if not mask.is_floating_point():
            mask = mask.logical_not()

    heads, weights = self.attend_inputs(x, memory, content, padding, mask, is_causal, need_weights)
    out = self.out_proj.forward(heads.transpose(1, 2).flatten(2))
    if not batched:
        out = out.squeeze(0)
    elif not self.batch_first:
        out = out.transpose(0, 1)
    if weights is not None:
        if average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            weights = weights.squeeze(0)
    return out, weights
)";

const auto kFlag = c10::BoolType::get();
const auto kInteger = c10::IntType::get();
const auto kNumber = c10::FloatType::get();
const auto kIntegers = c10::ListType::ofInts();

Module convert(const TokenConvImpl& conv, const UnitPtr& unit) {
  auto script = shell("TokenConv", conv, unit);
  script.register_attribute("num_special", kInteger, conv.num_special);
  script.register_attribute("columns", kInteger, conv.columns);
  define(script, {conv.kind == "1d" ? kConv1d : kConv2d, kTokenConv});
  return script;
}

void add_projections(Module& script, const AttentionBNSHImpl& module) {
  none_unless_defined(script, "in_proj_bias", module.in_proj_bias);
  script.register_attribute("rows", kIntegers, module.projection_rows());
  script.register_attribute(
      "widths", kIntegers,
      std::vector<int64_t>{module.head_dim(), module.head_dim(), module.value_head_dim()});
  const bool packed = module.in_proj_weight.defined();
  define(script, {packed ? kWeightsPacked : kWeightsSeparate, kProjectEach,
                  packed ? kProjectPacked : kProjectSeparate});
}

void add_convolution(Module& script, const AttentionBNSHImpl& module, const UnitPtr& unit) {
  if (module.conv_q) {
    script.register_module("conv_q", convert(*module.conv_q, unit));
    script.register_module("conv_k", convert(*module.conv_k, unit));
  }
  define(script, {module.conv_q ? kConvolution : kNoConvolution});
}

/// attend_to_keys. Attention-BN that neither re-centres nor divides is softmax attention.
void add_normalisation(Module& script, const AttentionBNSHImpl& module) {
  const auto& o = module.options;
  const bool bn = o.normalises();
  none_unless_defined(script, "beta", module.beta);
  script.register_attribute("bn", kFlag, bn);
  script.register_attribute("use_std", kFlag, bn && o.use_std);
  script.register_attribute("eps", kNumber, o.eps);
  script.register_attribute("beta_value", kNumber, module.beta_value());
  define(script, {o.is_linear() ? kAttendToKeysLinear : kAttendToKeys});
}

void add_groups(Module& script, const AttentionBNSHImpl& module) {
  const auto& o = module.options;
  const auto groups = group_heads(module.scales());
  c10::List<int64_t> scales;
  c10::List<c10::List<int64_t>> heads;
  for (const auto& group : groups) {
    scales.push_back(group.scale);
    heads.push_back(c10::List<int64_t>(group.heads));
  }
  script.register_attribute("scales", kIntegers, module.scales());
  script.register_attribute("group_scales", kIntegers, scales);
  script.register_attribute("group_heads", c10::ListType::create(kIntegers), heads);
  script.register_attribute("head_places", kIntegers, head_places(groups));
  const auto shared = module.queries_per_key();
  script.register_attribute("queries_per_key", kInteger, shared);
  script.register_attribute("beta_rows", kInteger, o.is_linear() ? int64_t{1} : shared);
  script.register_attribute("count_weighting", kFlag, o.count_weighting);
  script.register_attribute("tail", c10::StringType::get(), o.tail);
  script.register_attribute("num_special", kInteger, o.num_special);
  define(script, {kGroups});
}

}  // namespace

Module convert(const AttentionBNSHImpl& module, const UnitPtr& unit) {
  const auto& o = module.options;
  auto script = shell("AttentionBNSH", module, unit);
  script.register_module("out_proj", convert(*module.out_proj, unit));
  script.register_attribute("batch_first", kFlag, o.batch_first);
  script.register_attribute("stats_mask", kFlag, o.stats_mask);
  script.register_attribute("gqa", kFlag, module.is_gqa());
  add_projections(script, module);
  add_convolution(script, module, unit);
  if (o.variant != "softmax") add_normalisation(script, module);
  if (o.pools()) add_groups(script, module);

  define(script, {o.variant == "softmax" ? kAttendSoftmax
                  : !o.pools()           ? kAttend
                  : o.is_linear()        ? kAttendScaledLinear
                                         : kAttendScaled,
                  kAttendProjected});
  define(script,
         {o.pools() && !module.conv_q ? kPooledInputs : kProjectedInputs, kAttentionForward});
  return script;
}

}  // namespace kktorch::detail
