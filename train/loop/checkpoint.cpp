#include "train/loop/checkpoint.h"

#include <fmt/ostream.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <vector>

#include "train/common/error.h"
#include "train/common/files.h"
#include "train/common/torch_file.h"

namespace kktorch {
namespace {

using c10::IValue;

template <typename Value>
IValue to_dict(const std::map<std::string, Value>& values) {
  c10::impl::GenericDict dict(c10::StringType::get(), c10::AnyType::get());
  for (const auto& [name, value] : values) dict.insert(name, value);
  return dict;
}

TensorMap tensors_of(const IValue& dict) {
  TensorMap tensors;
  for (const auto& entry : dict.toGenericDict())
    tensors[entry.key().toStringRef()] = entry.value().toTensor();
  return tensors;
}

NumberMap numbers_of(const IValue& dict) {
  NumberMap numbers;
  for (const auto& entry : dict.toGenericDict())
    numbers[entry.key().toStringRef()] = entry.value().toScalar();
  return numbers;
}

std::string shape_and_dtype(const at::Tensor& tensor) {
  return fmt::format("{} {}", fmt::streamed(tensor.sizes()), c10::toString(tensor.scalar_type()));
}

}  // namespace

void save_checkpoint(const std::filesystem::path& file, const Checkpoint& checkpoint) {
  c10::impl::GenericDict dict(c10::StringType::get(), c10::AnyType::get());
  dict.insert("model", to_dict(checkpoint.model));
  dict.insert("optimizer", to_dict(checkpoint.optimizer));
  dict.insert("rng", checkpoint.rng);
  dict.insert("progress", to_dict(checkpoint.progress));
  write_file(file, torch_save_bytes(dict));
}

Checkpoint load_checkpoint(const std::filesystem::path& file) {
  const auto bytes = read_file(file);
  try {
    const auto dict =
        torch::jit::pickle_load(std::vector<char>(bytes.begin(), bytes.end())).toGenericDict();
    return {tensors_of(dict.at("model")), tensors_of(dict.at("optimizer")),
            dict.at("rng").toTensor(), numbers_of(dict.at("progress"))};
  } catch (const std::exception&) {  // c10::Error, or std::out_of_range from a missing key
    fail("{}: expected a checkpoint of kktorch, but got something else", file.string());
  }
}

TensorMap model_state(const torch::nn::Module& model) {
  TensorMap state;
  for (const auto& item : model.named_parameters()) state[item.key()] = item.value().detach();
  for (const auto& item : model.named_buffers()) state[item.key()] = item.value();
  return state;
}

void load_model_state(torch::nn::Module& model, const TensorMap& state) {
  const auto own = model_state(model);
  for (const auto& [name, tensor] : own) {
    const auto saved = state.find(name);
    if (saved == state.end())
      fail("checkpoint: expected {} {}, but got none", name, shape_and_dtype(tensor));
    if (saved->second.sizes() != tensor.sizes() ||
        saved->second.scalar_type() != tensor.scalar_type())
      fail("checkpoint: expected {} {}, but got {}", name, shape_and_dtype(tensor),
           shape_and_dtype(saved->second));
  }
  for (const auto& [name, tensor] : state)
    if (!own.contains(name))
      fail("checkpoint: expected no entry {}, but got {}", name, shape_and_dtype(tensor));
  const at::NoGradGuard no_grad;
  for (auto& [name, tensor] : own) tensor.copy_(state.at(name));
}

}  // namespace kktorch
