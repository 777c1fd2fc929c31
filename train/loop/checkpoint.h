#pragma once
// The state of a training run in one file, which torch.load reads as a dictionary:
//   model     {name: tensor}  parameters and buffers
//   optimizer {name: tensor}  see Optimiser::state
//   rng       tensor          LibTorch's CPU generator
//   progress  {name: number}  where the run stands
#include <torch/nn/module.h>

#include <filesystem>
#include <map>
#include <string>

#include "train/loop/optimiser.h"

namespace kktorch {

using NumberMap = std::map<std::string, c10::Scalar>;

struct Checkpoint {
  TensorMap model, optimizer;
  at::Tensor rng;
  NumberMap progress;
};

/// Written whole or not at all (write_file). @throws UserError
void save_checkpoint(const std::filesystem::path& file, const Checkpoint& checkpoint);

/// @throws UserError if the file is missing or no checkpoint.
Checkpoint load_checkpoint(const std::filesystem::path& file);

/// Parameters and buffers by name; the tensors are the model's own.
TensorMap model_state(const torch::nn::Module& model);

/// Copies `state` into the model.
/// @throws UserError naming the first parameter or buffer that is missing, unknown, or of another
/// shape or dtype.
void load_model_state(torch::nn::Module& model, const TensorMap& state);

}  // namespace kktorch
