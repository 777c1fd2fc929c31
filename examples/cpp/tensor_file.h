#pragma once
// Tensors in files that torch.save and torch.load understand.
#include <torch/serialize.h>

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

/// Reads what Python wrote with torch.save([tensor, ...], file).
inline std::vector<torch::Tensor> read_tensors(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw std::runtime_error(file + ": expected a file of tensors, but got none");
  const std::vector<char> bytes(std::istreambuf_iterator<char>(stream), {});
  const auto list = torch::pickle_load(bytes);
  std::vector<torch::Tensor> tensors;
  for (const auto& item : list.toListRef()) tensors.push_back(item.toTensor());
  return tensors;
}

/// Writes a tensor for torch.load(file).
inline void write_tensor(const torch::Tensor& tensor, const std::string& file) {
  const auto bytes = torch::pickle_save(tensor);
  std::ofstream stream(file, std::ios::binary);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!stream.flush()) throw std::runtime_error(file + ": expected to write it, but could not");
}
