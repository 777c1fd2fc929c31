#pragma once
// The experiments of "Convexifying Transformers" (arXiv 2211.11052), one file each.
#include "train/experiments/experiment.h"

namespace kktorch::convex {

inline constexpr const char* kPaper = "convex";

Experiment japanese_vowels();
Experiment modular();
Experiment sparsity_path();
Experiment student_teacher();

}  // namespace kktorch::convex
