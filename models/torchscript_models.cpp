// The encoder and the classifiers in TorchScript.
#include <cmath>

#include "models/torchscript.h"
#include "models/torchscript_parts.h"

namespace kktorch {
namespace detail {
namespace {

using torch::jit::Module;

constexpr auto kTimeSeriesForward = R"(
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
    h = self.encoder.forward(self.embedding.forward(h) * self.embedding_scale, padding)
    h = self.activate(h)
    if padding is not None:
        h = h.masked_fill(padding.unsqueeze(-1), 0)
    h = torch.constant_pad_nd(h, [0, 0, 0, self.max_length - h.size(1)], 0)
    return self.head.forward(h.flatten(1))
)";

constexpr auto kTokenForward = R"(
def forward(self, ids: Tensor, padding_mask: Optional[Tensor] = None) -> Tensor:
    message = "TokenClassifier: expected ids [B, 1 <= L <= {}], but got {}"
    assert 1 <= ids.size(1) and ids.size(1) <= self.max_length, message.format(self.max_length,
                                                                               ids.size())
    tokens = ids
    if padding_mask is not None:
        tokens = ids.masked_fill(padding_mask, 0)
        message = "TokenClassifier: expected a valid token in every sequence, but got none in one"
        assert not bool(padding_mask.all(1).any()), message
    if tokens.numel() > 0:
        least, largest = int(tokens.min()), int(tokens.max())
        message = "TokenClassifier: expected ids in [0, {}), but got {} to {}"
        assert 0 <= least and largest < self.vocabulary, message.format(self.vocabulary, least,
                                                                        largest)
    h = self.encoder.forward(self.embedding.forward(tokens), padding_mask)
    if padding_mask is None:
        mean = h.mean(1)
    else:
        count = padding_mask.logical_not().sum(1, True)
        mean = h.masked_fill(padding_mask.unsqueeze(-1), 0).sum(1) / count
    return self.head.forward(torch.relu(self.hidden.forward(mean)))
)";

constexpr auto kImageForward = R"(
def forward(self, images: Tensor) -> Tensor:
    message = "SmallViT: expected images [B, C, {}, {}], but got {}"
    height, width = self.rows * self.patch, self.columns * self.patch
    assert images.size()[2:] == [height, width], message.format(height, width, images.size())
    x = images.to(self.input_mean.dtype) - self.input_mean.view(-1, 1, 1)
    x = (x / self.input_std.view(-1, 1, 1)).unflatten(2, [self.rows, self.patch])
    x = x.unflatten(4, [self.columns, self.patch]).permute(0, 2, 4, 1, 3, 5)
    tokens = self.embedding.forward(x.flatten(3).flatten(1, 2))
    first = self.class_token.expand(tokens.size(0), 1, -1)
    h = self.encoder.forward(torch.cat([first, tokens], 1), None)
    return self.head.forward(self.norm.forward(h.select(1, 0)))
)";

constexpr auto kEmbedding = R"(
def forward(self, ids: Tensor) -> Tensor:
    return torch.embedding(self.weight, ids)
)";

}  // namespace

Module convert(const EncoderImpl& encoder, const UnitPtr& unit) {
  auto script = shell("Encoder", encoder, unit);
  auto layers = shell("Layers", *encoder.layers, unit);
  // A script has no loop over submodules of different classes: the calls are written out.
  std::string source =
      "def forward(self, x: Tensor, padding_mask: Optional[Tensor] = None,\n"
      "            is_causal: bool = False) -> Tensor:\n"
      "    message = \"Encoder: expected x [B, L <= {}, width], but got {}\"\n"
      "    longest = self.position.size(0)\n"
      "    assert x.size(1) <= longest, message.format(longest, x.size())\n"
      "    x = x + self.position[:x.size(1)]\n";
  for (const auto& entry : encoder.layers->named_children()) {
    layers.register_module(entry.key(), convert(*entry.value()->as<EncoderLayer>(), unit));
    source += "    x = getattr(self.layers, \"" + entry.key() +
              "\").forward(x, padding_mask, None, is_causal)\n";
  }
  script.register_module("layers", layers);
  define(script, {source + "    return x\n"});
  return script;
}

Module convert(const TimeSeriesClassifierImpl& model, const UnitPtr& unit) {
  const auto& o = model.options;
  auto script = shell("TimeSeriesClassifier", model, unit);
  script.register_module("embedding", convert(*model.embedding, unit));
  script.register_module("encoder", convert(*model.encoder, unit));
  script.register_module("head", convert(*model.head, unit));
  script.register_attribute("max_length", c10::IntType::get(), o.max_length);
  script.register_attribute("ragged_masks", c10::BoolType::get(), o.ragged_masks);
  script.register_attribute("embedding_scale", c10::FloatType::get(), std::sqrt(o.encoder.width));
  define(script, {activation_source(o.encoder.activation), kTimeSeriesForward});
  return script;
}

Module convert(const torch::nn::EmbeddingImpl& embedding, const UnitPtr& unit) {
  auto script = shell("Embedding", embedding, unit);
  define(script, {kEmbedding});
  return script;
}

Module convert(const TokenClassifierImpl& model, const UnitPtr& unit) {
  auto script = shell("TokenClassifier", model, unit);
  script.register_module("embedding", convert(*model.embedding, unit));
  script.register_module("encoder", convert(*model.encoder, unit));
  script.register_module("hidden", convert(*model.hidden, unit));
  script.register_module("head", convert(*model.head, unit));
  script.register_attribute("vocabulary", c10::IntType::get(), model.options.vocabulary);
  script.register_attribute("max_length", c10::IntType::get(), model.options.max_length);
  define(script, {kTokenForward});
  return script;
}

Module convert(const SmallViTImpl& model, const UnitPtr& unit) {
  const auto& o = model.options;
  auto script = shell("SmallViT", model, unit);
  script.register_module("embedding", convert(*model.embedding, unit));
  script.register_module("encoder", convert(*model.encoder, unit));
  script.register_module("norm", convert(*model.norm, unit));
  script.register_module("head", convert(*model.head, unit));
  script.register_attribute("patch", c10::IntType::get(), o.patch);
  script.register_attribute("rows", c10::IntType::get(), o.image_height / o.patch);
  script.register_attribute("columns", c10::IntType::get(), o.image_width / o.patch);
  define(script, {kImageForward});
  return script;
}

}  // namespace detail

torch::jit::Module to_torchscript(const EncoderImpl& module) {
  return detail::convert(module, detail::new_unit());
}

torch::jit::Module to_torchscript(const TimeSeriesClassifierImpl& module) {
  return detail::convert(module, detail::new_unit());
}

torch::jit::Module to_torchscript(const TokenClassifierImpl& module) {
  return detail::convert(module, detail::new_unit());
}

torch::jit::Module to_torchscript(const SmallViTImpl& module) {
  return detail::convert(module, detail::new_unit());
}

}  // namespace kktorch
