#include "train/dynamics/ntk.h"

namespace kktorch::dynamics {

using at::Tensor;

Tensor Kernels::total() const {
  auto sum = blocks.at(0).clone();
  for (size_t b = 1; b < blocks.size(); ++b) sum += blocks[b];
  return sum;
}

double alignment(const Tensor& kernel, const Tensor& y) {
  const auto centred = kernel - kernel.mean(0, true) - kernel.mean(1, true) + kernel.mean();
  const auto form = torch::dot(y, torch::mv(centred, y));
  return (form / (centred.norm() * y.square().sum())).item<double>();
}

double drift(const Tensor& kernel, const Tensor& start) {
  const double size = start.norm().item<double>(), moved = (kernel - start).norm().item<double>();
  return size > 0 ? moved / size : moved;
}

Spectrum spectrum(const Tensor& kernel) {
  const auto values = torch::linalg_eigvalsh(kernel);
  const double largest = values.max().item<double>();
  return {values.min().item<double>(), largest, kernel.trace().item<double>() / largest};
}

}  // namespace kktorch::dynamics
