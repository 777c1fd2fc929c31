// Runs an AOTInductor package, for example that of `python -m kktorch.export RUN --out MODEL.pt2`:
//   load_aoti MODEL.pt2 INPUTS.pt OUTPUT.pt
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <exception>
#include <iostream>

#include "tensor_file.h"

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("usage: load_aoti MODEL.pt2 INPUTS.pt OUTPUT.pt");
  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  const auto output = model.run(read_tensors(argv[2])).at(0);
  write_tensor(output, argv[3]);
  std::cout << "output " << output.sizes() << '\n';
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
