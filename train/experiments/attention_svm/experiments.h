#pragma once
// The experiments of "Transformers as Support Vector Machines" (arXiv 2308.16898) and of
// "Max-Margin Token Selection in Attention Mechanism" (arXiv 2306.13596), one file each.
#include "train/experiments/experiment.h"

namespace kktorch::attention_svm {

Experiment local_converge();
Experiment multi_token();
Experiment prompt();
Experiment svm_rank();
Experiment types();
Experiment visual();

}  // namespace kktorch::attention_svm
