#pragma once
// What a comparison compares: one model with different encoders, each under a name.
#include <string>
#include <vector>

#include "models/encoder.h"

namespace kktorch {

struct Method {
  std::string label;  ///< of its runs, their folders, and its row in the table
  EncoderOptions encoder;
};

/// The names that method_named knows: softmax, bn, sh, bnsh, linear, linear_bn, linear_sh,
/// linear_bnsh, and with "-nostd" behind those that normalise.
std::vector<std::string> method_names();

/// `base` with the attention that `name` stands for; "-nostd": not divided by the standard
/// deviation.
/// @throws UserError for another name.
Method method_named(const std::string& name, EncoderOptions base);

}  // namespace kktorch
