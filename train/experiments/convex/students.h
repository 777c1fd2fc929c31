#pragma once
// The students of student_teacher, each trained on the same data and reported in the same form.
#include <nlohmann/json.hpp>
#include <vector>

#include "train/experiments/convex/student_data.h"

namespace kktorch::convex {

/// What a student is trained on.
struct Lesson {
  const nlohmann::json& settings;
  const StudentData& data;
  double beta;
  uint64_t seed;
  bool is_followed;  ///< evaluate it along its training, for "curve"
};

/// Every student is {"seconds", "train loss", "train R2", "test loss", "test R2", "map": [n],
/// "curve": [{"iteration", "seconds", "train", "test", and "objective", "bound" where known}]};
/// seconds are without evaluation. Those of the convex objective have "objective", "bound" (a lower
/// bound of the optimum), "active groups", "active tokens" too.

/// Softmax attention by full-batch Adam in float32, with "entropy" of its maps as a share of that
/// of uniform ones.
nlohmann::json softmax_student(const Lesson& lesson, double rate, bool decay_qk);

/// The factored network of `heads` heads, by palm with escapes or by Adam on softmax logits.
nlohmann::json factored_student(const Lesson& lesson, double rate, bool palm, int64_t heads);

/// The convex program by the certified solver, with its Lipschitz constant "lip"; 0 where no
/// step was over all groups.
nlohmann::json convex_student(const Lesson& lesson);

/// The convex program by full-batch Adam on Z; its zeros come from one proximal step at the end.
nlohmann::json adam_student(const Lesson& lesson, double rate, double lip);

/// Half squared error.
double loss_per_sample(const at::Tensor& A, const at::Tensor& Y);

/// {"active groups", "active tokens", "map": [n] shares of the tokens in the sum of norms} of Z.
nlohmann::json tokens_of(const at::Tensor& Z);

/// All numbers of a tensor.
std::vector<double> values_of(const at::Tensor& t);

}  // namespace kktorch::convex
