#include "models/torchscript_parts.h"

#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/frontend/sugared_value.h>

namespace kktorch::detail {
namespace {

using torch::jit::Module;

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

/// Finds torch.* (aten) and kktorch.* in a source.
struct OpResolver : torch::jit::NativeResolver {
  std::shared_ptr<torch::jit::SugaredValue> resolveValue(
      const std::string& name, torch::jit::GraphFunction& function,
      const torch::jit::SourceRange& location) override {
    if (name == "kktorch") return std::make_shared<torch::jit::BuiltinModule>("kktorch");
    return NativeResolver::resolveValue(name, function, location);
  }
};

}  // namespace

void define(Module& script, std::initializer_list<std::string> sources) {
  const auto resolver = std::make_shared<OpResolver>();
  for (const auto& source : sources) script.define(source, resolver);
}

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

void none_unless_defined(Module& script, const std::string& name, const torch::Tensor& parameter) {
  if (!parameter.defined()) {
    script.register_attribute(name, c10::OptionalType::ofTensor(), c10::IValue());
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

const char* activation_source(const std::string& activation) {
  return activation == "relu" ? kActivateRelu : kActivateGelu;
}

}  // namespace kktorch::detail
