#pragma once
// The experiments on "Finite-Time Analysis of Gradient Descent for Shallow Transformers" (arXiv
// 2601.16514), one file each.
#include "train/experiments/experiment.h"

namespace kktorch::shallow {

inline constexpr const char* kPaper = "shallow";

Experiment e1();
Experiment e2();
Experiment e3();
Experiment e4();
Experiment e5();
Experiment e6();
Experiment e7();
Experiment e8();
Experiment e9();

}  // namespace kktorch::shallow
