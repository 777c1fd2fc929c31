#pragma once
// The experiments on "On the Optimization and Generalization of Multi-head Attention" (arXiv
// 2310.12680), one file each.
#include "train/experiments/experiment.h"

namespace kktorch::multihead {

inline constexpr const char* kPaper = "multihead";

Experiment e1();
Experiment e2();
Experiment e3();
Experiment e4();
Experiment e5();
Experiment e6();
Experiment e7();
Experiment e8();

}  // namespace kktorch::multihead
