#pragma once
// TorchScript modules with the parameters and the evaluation-mode function of the C++ modules.
//
// A saved model loads in C++ (torch::jit::load) and in Python (torch.jit.load); with another
// attention than softmax, after libkktorch.so. torch.export of the Python modules is the other
// deployment path.
#include <torch/csrc/jit/api/module.h>

#include "models/attention_bnsh.h"
#include "models/encoder.h"
#include "models/encoder_layer.h"
#include "models/small_vit.h"
#include "models/time_series_classifier.h"
#include "models/token_classifier.h"

namespace kktorch {

/// The TorchScript form of a module: the same forward arguments (optional tensors are None instead
/// of undefined; AttentionBNSH returns a tuple with None for weights not asked for), state names
/// and results in evaluation mode, whatever the mode of the module. Dropout is left out, and eval()
/// or train() on the result change nothing. Tensors are shared with `module`, not copied: move or
/// train a copy if the script is not saved at once.
torch::jit::Module to_torchscript(const AttentionBNSHImpl& module);
torch::jit::Module to_torchscript(const EncoderLayerImpl& module);
torch::jit::Module to_torchscript(const EncoderImpl& module);
torch::jit::Module to_torchscript(const TimeSeriesClassifierImpl& module);
torch::jit::Module to_torchscript(const TokenClassifierImpl& module);
torch::jit::Module to_torchscript(const SmallViTImpl& module);

}  // namespace kktorch
