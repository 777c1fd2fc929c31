#pragma once
// What the TorchScript forms of layers (torchscript.cpp) and models (torchscript_models.cpp) share.
//
// Their sources are the forward functions of the C++ modules, without dropout and without the
// checks that an op repeats. What an option decides once and for all is decided in C++, by the
// choice of a source, not in the script.
#include <torch/csrc/jit/api/module.h>
#include <torch/torch.h>

#include <initializer_list>
#include <memory>
#include <string>

#include "models/attention_bnsh.h"
#include "models/encoder_layer.h"
#include "models/token_norm.h"

namespace kktorch::detail {

using UnitPtr = std::shared_ptr<torch::jit::CompilationUnit>;

inline UnitPtr new_unit() { return std::make_shared<torch::jit::CompilationUnit>(); }

/// An empty script module that has the parameters and buffers of `module` (not of its submodules).
/// All modules of one model share `unit`, in which equal class names are told apart.
torch::jit::Module shell(const char* name, const torch::nn::Module& module, const UnitPtr& unit);

/// Adds methods to a script module. Sources may call torch.* (aten) and kktorch.*.
void define(torch::jit::Module& script, std::initializer_list<std::string> sources);

/// Gives the script `None` where the module has no such parameter.
void none_unless_defined(torch::jit::Module& script, const std::string& name,
                         const torch::Tensor& parameter);

/// The method activate(x): activate() of models/encoder_layer.h.
const char* activation_source(const std::string& activation);

torch::jit::Module convert(const torch::nn::LinearImpl& linear, const UnitPtr& unit);
torch::jit::Module convert(const TokenNormImpl& norm, const UnitPtr& unit);
torch::jit::Module convert(const AttentionBNSHImpl& module, const UnitPtr& unit);
torch::jit::Module convert(const EncoderLayerImpl& layer, const UnitPtr& unit);

}  // namespace kktorch::detail
