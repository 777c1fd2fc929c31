// Runs a TorchScript model, for example model.ts of a run of `kktorch train`:
//   load_torchscript MODEL.ts INPUTS.pt OUTPUT.pt
#include <torch/script.h>

#include <exception>
#include <iostream>

#include "tensor_file.h"

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("usage: load_torchscript MODEL.ts INPUTS.pt OUTPUT.pt");
  auto model = torch::jit::load(argv[1]);
  std::vector<torch::IValue> inputs;
  for (const auto& tensor : read_tensors(argv[2])) inputs.emplace_back(tensor);
  const torch::NoGradGuard no_grad;
  const auto output = model.forward(inputs).toTensor();
  write_tensor(output, argv[3]);
  std::cout << "output " << output.sizes() << '\n';
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
