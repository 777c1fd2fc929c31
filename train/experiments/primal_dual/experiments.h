#pragma once
// The experiments of "A Primal-Dual Framework for Transformers and Neural Networks" (arXiv
// 2406.13781), one file each.
#include "train/experiments/experiment.h"

namespace kktorch::primal_dual {

inline constexpr const char* kPaper = "primal-dual";

Experiment controls();
Experiment digits();
Experiment listops();
Experiment redundancy();
Experiment retrieval();
Experiment svr();
Experiment uea();

}  // namespace kktorch::primal_dual
