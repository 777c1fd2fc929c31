#include "train/loop/checkpoint.h"

#include <caffe2/serialize/inline_container.h>
#include <fmt/ostream.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/csrc/jit/serialization/pickler.h>

#include <vector>

#include "train/common/error.h"
#include "train/common/files.h"

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

/// The bytes of torch.save(value). Not torch::pickle_save: its type tags need
/// torch.load(weights_only=False).
std::string saved_bytes(const IValue& value) {
  std::string pickle, file;
  size_t tensors = 0;
  torch::jit::Pickler pickler([&](const char* data, size_t size) { pickle.append(data, size); },
                              nullptr, nullptr, nullptr,
                              [&](const at::Tensor&) { return std::to_string(tensors++); },
                              /*tag_aggregates=*/false);
  pickler.protocol();
  pickler.pushIValue(value);
  pickler.stop();
  caffe2::serialize::PyTorchStreamWriter writer([&](const void* data, size_t size) {
    file.append(static_cast<const char*>(data), size);
    return size;
  });
  writer.writeRecord("data.pkl", pickle.data(), pickle.size());
  for (size_t i = 0; i < tensors; ++i) {
    const auto data = torch::jit::getWriteableTensorData(pickler.tensorData().at(i));
    writer.writeRecord("data/" + std::to_string(i), data.data(), data.sizeInBytes());
  }
  writer.writeEndOfFile();
  return file;
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
  write_file(file, saved_bytes(dict));
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
