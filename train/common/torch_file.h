#pragma once
// The format of torch.save.
#include <ATen/core/ivalue.h>

#include <map>
#include <string>

namespace kktorch {

/// The bytes of torch.save(value), which torch.load(weights_only=True) reads. Not
/// torch::pickle_save: its type tags need torch.load(weights_only=False).
std::string torch_save_bytes(const c10::IValue& value);

/// The same for a dictionary of tensors.
std::string torch_save_bytes(const std::map<std::string, at::Tensor>& tensors);

}  // namespace kktorch
