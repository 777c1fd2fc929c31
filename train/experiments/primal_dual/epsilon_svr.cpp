#include "train/experiments/primal_dual/epsilon_svr.h"

#include <libsvm/svm.h>
#include <torch/torch.h>

#include <memory>
#include <vector>

#include "train/common/error.h"

namespace kktorch::primal_dual {
namespace {

/// Rows of a kernel matrix as LIBSVM wants them: node 0 holds the number of the point, counted from
/// 1, nodes 1 ... N the kernel with every point of the training data, index -1 ends the row.
class KernelRows {
 public:
  explicit KernelRows(const at::Tensor& matrix) {
    const auto values = matrix.accessor<double, 2>();
    for (int64_t i = 0; i < matrix.size(0); ++i) {
      auto& row = rows_.emplace_back();
      row.push_back({0, static_cast<double>(i + 1)});
      for (int j = 0; j < matrix.size(1); ++j) row.push_back({j + 1, values[i][j]});
      row.push_back({-1, 0});
    }
    for (auto& row : rows_) pointers_.push_back(row.data());
  }

  svm_node** data() { return pointers_.data(); }
  const std::vector<svm_node*>& pointers() const { return pointers_; }

 private:
  std::vector<std::vector<svm_node>> rows_;
  std::vector<svm_node*> pointers_;
};

svm_parameter parameters(const SvrOptions& options) {
  svm_parameter parameters{};
  parameters.svm_type = EPSILON_SVR;
  parameters.kernel_type = PRECOMPUTED;
  parameters.cache_size = 16;  // MB
  parameters.eps = options.tolerance;
  parameters.C = options.box;
  parameters.p = options.tube;
  parameters.shrinking = 1;
  return parameters;
}

struct FreeModel {
  void operator()(svm_model* model) const { svm_free_and_destroy_model(&model); }
};

}  // namespace

SvrSolution solve_svr(const at::Tensor& gram, const at::Tensor& targets, const at::Tensor& queries,
                      const SvrOptions& options) {
  KernelRows rows(gram);
  const KernelRows query_rows(queries);
  auto y = targets.clone(at::MemoryFormat::Contiguous);
  const svm_problem problem{
      .l = static_cast<int>(y.numel()), .y = y.mutable_data_ptr<double>(), .x = rows.data()};
  const auto parameter = parameters(options);
  if (const char* complaint = svm_check_parameter(&problem, &parameter))
    fail("solve_svr: expected a problem that LIBSVM accepts, but got: {}", complaint);
  svm_set_print_string_function([](const char*) {});
  const std::unique_ptr<svm_model, FreeModel> model(svm_train(&problem, &parameter));
  SvrSolution solution{.dual = torch::zeros_like(y),
                       .bias = -model->rho[0],
                       .predictions = torch::empty(queries.size(0), torch::kDouble)};
  for (int s = 0; s < model->l; ++s) solution.dual[model->sv_indices[s] - 1] = model->sv_coef[0][s];
  for (int64_t i = 0; i < queries.size(0); ++i)
    solution.predictions[i] = svm_predict(model.get(), query_rows.pointers()[i]);
  return solution;
}

double svr_kkt_violation(const at::Tensor& gram, const at::Tensor& targets,
                         const SvrSolution& solution, const SvrOptions& options) {
  const auto& c = solution.dual;
  const auto residual = targets - torch::mv(gram, c) - solution.bias;
  // Along the sign of c: beyond the tube by as much as the box prevents, on its edge inside the
  // box.
  const auto beyond = torch::where(c == 0, residual.abs(), c.sign() * residual) - options.tube;
  const auto violation =
      torch::where(c == 0, beyond.clamp_min(0),
                   torch::where(c.abs() < options.box, beyond.abs(), (-beyond).clamp_min(0)));
  return violation.max().item<double>();
}

}  // namespace kktorch::primal_dual
