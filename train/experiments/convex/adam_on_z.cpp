#include "train/experiments/convex/adam_on_z.h"

#include <torch/torch.h>

#include <cmath>
#include <numbers>
#include <numeric>
#include <vector>

#include "csrc/convex/design.h"
#include "csrc/convex/loss.h"
#include "ops/convex/prepared.h"

namespace kktorch::convex {
namespace {

using at::Tensor;

Tensor in_float64(const Tensor& t) { return t.is_floating_point() ? t.to(at::kDouble) : t; }

/// The data term and its gradient at Z, in one read of the samples.
class DataTerm {
 public:
  DataTerm(const Tensor& X, const Tensor& Y, const ConvexOptions& options)
      : problem_(detail::prepare("adam_on_z", in_float64(X), in_float64(Y), options)),
        data_(problem_.data<double>()),
        R_(torch::empty(problem_.prediction_shape(), at::kDouble)),
        design_(csrc::samples_of(data_), detail::run_parallel) {}

  std::vector<int64_t> shape() const { return problem_.state_shape(); }

  double evaluate(const Tensor& Z, Tensor& G) {
    std::vector<double> losses(design_.blocks());
    const auto head = [&](int64_t block, int64_t first, int64_t count, const double* A) {
      double* R = R_.mutable_data_ptr<double>() + first * data_.c;
      losses[block] = csrc::loss_of_rows(data_.loss, A, data_.targets, first, count, data_.c);
      csrc::gradient_of_rows(data_.loss, A, data_.targets, first, count, data_.c, R);
      return static_cast<const double*>(R);
    };
    design_.pass(Z.const_data_ptr<double>(), data_.c, head, G.mutable_data_ptr<double>());
    return std::accumulate(losses.begin(), losses.end(), 0.);
  }

 private:
  detail::Prepared problem_;
  csrc::ConvexData<double> data_;
  Tensor R_;
  csrc::Design<double> design_;
};

}  // namespace

double cosine(double initial, int64_t step, int64_t steps) {
  const double way = static_cast<double>(step) / static_cast<double>(steps);
  return initial * (1 + std::cos(std::numbers::pi * way)) / 2;
}

Tensor adam_on_z(const Tensor& X, const Tensor& Y, double beta, const ConvexOptions& options,
                 const AdamSteps& adam) {
  DataTerm data(X, Y, options);
  auto Z = torch::zeros(data.shape(), at::kDouble), G = torch::zeros_like(Z),
       first = torch::zeros_like(Z), second = torch::zeros_like(Z);
  for (int64_t step = 0; step < adam.steps; ++step) {
    const double loss = data.evaluate(Z, G);
    const auto size = Z.norm(2, {-1}, true);
    const double F = loss + beta * size.sum().item<double>();
    if (adam.progress && !adam.progress(step, F, Z)) break;
    G.addcdiv_(Z, size.clamp_min(1e-300), beta);
    first.mul_(0.9).add_(G, 0.1);
    second.mul_(0.999).addcmul_(G, G, 0.001);
    const auto t = static_cast<double>(step + 1);
    const auto root = (second / (1 - std::pow(0.999, t))).sqrt_().add_(1e-8);
    Z = Z.addcdiv(first, root, -cosine(adam.rate, step, adam.steps) / (1 - std::pow(0.9, t)));
  }
  return Z;
}

ConvexResult shrunk(const Tensor& X, const Tensor& Y, double beta, ConvexOptions options,
                    const Tensor& Z, double lip) {
  options.Z0 = Z;
  options.lip = lip;
  options.tol_rel = 0;
  options.max_iter = 1;
  options.screen_every = 0;
  return solve(X, Y, beta, options);
}

}  // namespace kktorch::convex
