#include "train/experiments/convex/adam_on_z.h"

#include <torch/torch.h>

#include <cmath>
#include <numbers>
#include <numeric>
#include <vector>

#include "csrc/convex/design.h"
#include "csrc/convex/loss.h"
#include "ops/convex/inputs.h"

namespace kktorch::convex {
namespace {

using at::Tensor;

/// The data term and its gradient at Z, in one read of the samples.
class DataTerm {
 public:
  DataTerm(const Tensor& X, const Tensor& Y, const ConvexOptions& options)
      : loss_(detail::loss_of("adam_on_z", options.loss)),
        is_ids_(options.num_values > 0),
        X_(is_ids_ ? X.contiguous() : X.to(at::kDouble).contiguous()),
        Y_(Y.is_floating_point() ? Y.to(at::kDouble).contiguous() : Y.contiguous()),
        gate_(options.gate ? options.gate->to(at::kByte).contiguous() : Tensor()),
        P_(options.gate ? options.gate->size(1) : 1),
        c_(detail::outputs_of(Y, options.classes)),
        n_(X.size(1)),
        d_(is_ids_ ? options.num_values : X.size(2)),
        R_(torch::empty({X.size(0), c_}, at::kDouble)),
        design_(samples(), detail::run_parallel) {}

  std::vector<int64_t> shape() const { return {P_, c_, n_, d_}; }

  double evaluate(const Tensor& Z, Tensor& G) {
    std::vector<double> losses(design_.blocks());
    const auto head = [&](int64_t block, int64_t first, int64_t count, const double* A) {
      double* R = R_.mutable_data_ptr<double>() + first * c_;
      losses[block] = csrc::loss_of_rows(loss_, A, targets(), first, count, c_);
      csrc::gradient_of_rows(loss_, A, targets(), first, count, c_, R);
      return static_cast<const double*>(R);
    };
    design_.pass(Z.const_data_ptr<double>(), c_, head, G.mutable_data_ptr<double>());
    return std::accumulate(losses.begin(), losses.end(), 0.);
  }

 private:
  csrc::Samples<double> samples() const {
    csrc::Samples<double> samples = {.N = X_.size(0), .D = n_ * d_, .P = P_};
    if (is_ids_) {
      samples.ids = X_.const_data_ptr<int64_t>();
      samples.n = n_;
      samples.V = d_;
    } else {
      samples.wide = X_.const_data_ptr<double>();
    }
    if (gate_.defined()) samples.gate = gate_.const_data_ptr<uint8_t>();
    return samples;
  }
  csrc::Targets<double> targets() const { return detail::targets_of<double>(Y_); }

  csrc::Loss loss_;
  bool is_ids_;
  Tensor X_, Y_, gate_;
  int64_t P_, c_, n_, d_;
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
