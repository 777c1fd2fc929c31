#pragma once
// What the students of student_teacher learn: the last attention layer of a Transformer that is
// random or trained, or the arrays of two files.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>

namespace kktorch::convex {

/// Standardised by the training samples: Y centred, one scale for Y and one for X.
struct StudentData {
  at::Tensor X, Y, test_X, test_Y;      ///< float64 [N, n, d], [N, c]
  at::Tensor map = {};                  ///< mean attention of the teacher's row 0, [n], if known
  std::optional<double> accuracy = {};  ///< of a trained teacher on new sequences, in %
};

/// By the setting "teacher":
///   random   post-LN Transformer, weights random, the logits of every layer have deviation 2;
///   trained  the same after "teacher_steps" of AdamW on a task whose answer is next to a marker;
///   file     "features" X [N, n, d] and "targets" Y [N, c], of [N, n, c] row 0, or class ids [N],
///            which become one-hot; a seeded "test_share" of the samples is for testing.
/// @throws UserError naming the file whose array is of another kind.
StudentData student_data(const nlohmann::json& settings, uint64_t seed);

}  // namespace kktorch::convex
