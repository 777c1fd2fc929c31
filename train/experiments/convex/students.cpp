#include "train/experiments/convex/students.h"

#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "models/convex_attention.h"
#include "ops/convex_attention.h"
#include "ops/convex_solver.h"
#include "ops/convex_training.h"
#include "train/common/clock.h"
#include "train/experiments/context.h"
#include "train/experiments/convex/adam_on_z.h"
#include "train/experiments/logged_steps.h"
#include "train/loop/seed_stream.h"

namespace kktorch::convex {
namespace {

using at::Tensor;
using nlohmann::json;

double half_loss(const Tensor& A, const Tensor& Y) {
  return (A - Y).square().sum().item<double>() / 2;
}

/// Loss per sample and explained share.
json error_of(const Tensor& A, const Tensor& Y, const std::string& part) {
  const double none = half_loss(torch::zeros_like(Y), Y);
  return {{part + " loss", loss_per_sample(A, Y)}, {part + " R2", 1 - half_loss(A, Y) / none}};
}

/// Losses along a training, at a logarithmic number of its steps; the clock stands while they are
/// evaluated.
class Curve {
 public:
  explicit Curve(const Lesson& lesson) : data_(lesson.data), is_followed_(lesson.is_followed) {}

  /// @param predict  predictions of the student as it is, float64, on given features.
  void add(int64_t step, int64_t steps, const std::function<Tensor(const Tensor&)>& predict,
           const json& more = json::object()) {
    if (!is_followed_ || !is_logged(step, steps)) return;
    const auto stopped = Clock::now();
    json point = {{"iteration", step},
                  {"seconds", seconds()},
                  {"train", loss_per_sample(predict(data_.X), data_.Y)},
                  {"test", loss_per_sample(predict(data_.test_X), data_.test_Y)}};
    point.update(more);
    points_.push_back(point);
    start_ += Clock::now() - stopped;
  }

  double seconds() const { return seconds_since(start_); }
  const json& points() const { return points_; }

 private:
  const StudentData& data_;
  bool is_followed_;
  Clock::time_point start_ = Clock::now();
  json points_ = json::array();
};

/// Iterations that are repeated to be shown: 1, 2, 3, 4, 6, 8, 12, ... and the last.
bool is_shown(int64_t iteration, int64_t last) {
  const auto is_power = [](int64_t k) { return (k & (k - 1)) == 0; };
  return iteration == last || is_power(iteration) ||
         (iteration % 3 == 0 && is_power(iteration / 3));
}

/// What the students of the convex objective report.
json effective_student(const Lesson& lesson, const Tensor& Z, double objective, double bound,
                       double seconds, const json& curve) {
  auto result = tokens_of(Z);
  result.update(
      {{"seconds", seconds}, {"curve", curve}, {"objective", objective}, {"bound", bound}});
  const auto& data = lesson.data;
  result.update(error_of(convex_predict(data.X, Z), data.Y, "train"));
  result.update(error_of(convex_predict(data.test_X, Z), data.test_Y, "test"));
  return result;
}

}  // namespace

double loss_per_sample(const Tensor& A, const Tensor& Y) {
  return half_loss(A, Y) / static_cast<double>(Y.size(0));
}

std::vector<double> values_of(const Tensor& t) {
  const auto dense = t.to(at::kDouble).contiguous();
  return {dense.const_data_ptr<double>(), dense.const_data_ptr<double>() + dense.numel()};
}

json tokens_of(const Tensor& Z) {
  const auto size = Z.norm(2, {-1});
  const auto share = size.sum(0).sum(0) / size.sum().clamp_min(1e-300);
  return {{"active groups", size.gt(0).sum().item<int64_t>()},
          {"active tokens", size.gt(0).flatten(0, 1).any(0).sum().item<int64_t>()},
          {"map", values_of(share)}};
}

json softmax_student(const Lesson& lesson, double rate, bool decay_qk) {
  const auto& [s, data, beta, seed, is_followed] = lesson;
  seed_torch(seed, "softmax student");
  const int64_t d = data.X.size(2), heads = s.at("student_heads"), steps = s.at("steps");
  SoftmaxAttention model(d, data.Y.size(1), heads, std::max<int64_t>(1, d / heads),
                         1 / std::sqrt(double(d)));
  const auto X = data.X.to(at::kFloat), Y = data.Y.to(at::kFloat),
             test_X = data.test_X.to(at::kFloat);
  torch::optim::Adam optimiser(model->parameters(), torch::optim::AdamOptions(rate));
  const auto predict = [&](const Tensor& features) {
    const torch::NoGradGuard no_grad;
    return model(features.to(at::kFloat)).to(at::kDouble);
  };
  Curve curve(lesson);
  for (int64_t step = 0; step < steps; ++step) {
    if (step % 20 == 0) stop_if_interrupted();
    curve.add(step, steps, predict);
    for (auto& group : optimiser.param_groups()) group.options().set_lr(cosine(rate, step, steps));
    const auto loss = (model(X) - Y).square().sum() / 2;
    auto decay = model->V.square().sum() + model->O.square().sum();
    if (decay_qk) decay = decay + model->Q.square().sum() + model->K.square().sum();
    optimiser.zero_grad();
    (loss + lesson.beta / 2 * decay).backward();
    optimiser.step();
  }
  const double seconds = curve.seconds();
  curve.add(steps, steps, predict);
  const torch::NoGradGuard no_grad;
  const auto maps = model->maps(test_X);  // [N, h, n]
  const double most = std::log(static_cast<double>(std::max<int64_t>(2, data.X.size(1))));
  json result = {{"seconds", seconds},
                 {"curve", curve.points()},
                 {"entropy", -torch::xlogy(maps, maps).sum(-1).mean().item<double>() / most},
                 {"map", values_of(maps.mean(0).mean(0))}};
  result.update(error_of(predict(data.X), data.Y, "train"));
  result.update(error_of(predict(data.test_X), data.test_Y, "test"));
  return result;
}

json factored_student(const Lesson& lesson, double rate, bool palm, int64_t heads) {
  const auto& s = lesson.settings;
  FactoredOptions options;
  options.heads = heads;
  options.optimiser = palm ? "palm" : "adam_softmax";
  options.escape = palm;
  options.max_escapes = 2;
  options.lr = rate;
  options.max_iter = s.at(palm ? "cycles" : "steps");
  options.tol_rel = s.at("tolerance");
  options.seed = static_cast<int64_t>(lesson.seed);
  Curve curve(lesson);
  options.progress = [&](int64_t iteration, double objective, const Heads& now) {
    stop_if_interrupted();
    curve.add(iteration, options.max_iter,
              [&](const Tensor& X) { return convex_predict(X, heads_to_z(now, 1)); },
              {{"objective", objective}});
    return true;
  };
  const auto r = train_factored(lesson.data.X, lesson.data.Y, lesson.beta, options);
  return effective_student(lesson, heads_to_z(r.heads, 1), r.objective, r.D, curve.seconds(),
                           curve.points());
}

json convex_student(const Lesson& lesson) {
  const auto& [s, data, beta, seed, is_followed] = lesson;
  ConvexOptions options;
  options.tol_rel = s.at("tolerance");
  options.progress = unless_interrupted;
  Curve watch(lesson);
  const auto r = solve(data.X, data.Y, beta, options);
  const double seconds = watch.seconds();
  // The solver repeats itself to the bit: stopped after k iterations, it shows the k-th point.
  json curve = json::array();
  const auto rows = r.history.accessor<double, 2>();
  double bound = -INFINITY;
  for (int64_t i = 0; i < r.history.size(0); ++i) {
    bound = std::max(bound, rows[i][2] - rows[i][3]);
    if (!is_followed || !is_shown(i + 1, r.iterations)) continue;
    options.max_iter = i + 1;
    const auto Z = solve(data.X, data.Y, beta, options).Z;
    curve.push_back({{"iteration", i + 1},
                     {"seconds", rows[i][1]},
                     {"objective", rows[i][2]},
                     {"bound", bound},
                     {"train", loss_per_sample(convex_predict(data.X, Z), data.Y)},
                     {"test", loss_per_sample(convex_predict(data.test_X, Z), data.test_Y)}});
  }
  auto result = effective_student(lesson, r.Z, r.F, r.D, seconds, curve);
  result["lip"] = r.lip;
  return result;
}

json adam_student(const Lesson& lesson, double rate, double lip) {
  const auto& data = lesson.data;
  const int64_t steps = lesson.settings.at("steps");
  Curve curve(lesson);
  const auto Z =
      adam_on_z(data.X, data.Y, lesson.beta, {},
                {.rate = rate,
                 .steps = steps,
                 .progress = [&](int64_t step, double objective, const Tensor& now) {
                   if (step % 20 == 0) stop_if_interrupted();
                   curve.add(step, steps, [&](const Tensor& X) { return convex_predict(X, now); },
                             {{"objective", objective}});
                   return true;
                 }});
  const auto last = shrunk(data.X, data.Y, lesson.beta, {}, Z, lip);
  const double seconds = curve.seconds();
  curve.add(steps, steps, [&](const Tensor& X) { return convex_predict(X, last.Z); },
            {{"objective", last.F}});
  return effective_student(lesson, last.Z, last.F, last.D, seconds, curve.points());
}

}  // namespace kktorch::convex
