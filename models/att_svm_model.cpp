#include "models/att_svm_model.h"

#include <algorithm>
#include <cmath>

#include "csrc/svm/attention_model.h"
#include "models/option_checks.h"
#include "ops/svm/token_rows.h"

namespace kktorch {
namespace {

using torch::Tensor;

/// For every entry the query that sees it, int64 [nnz].
Tensor query_of_entries(const Tensor& row_ptr, int64_t entries) {
  const auto queries = torch::arange(row_ptr.size(0) - 1, row_ptr.options());
  return torch::repeat_interleave(queries, row_ptr.diff(), 0, entries);
}

/// Softmax of logits [nnz] over the entries of every query.
Tensor softmax_over_sets(const Tensor& logits, const Tensor& query, int64_t queries) {
  const auto none = torch::zeros({queries}, logits.options());
  const auto top = none.scatter_reduce(0, query, logits.detach(), "amax", false);
  const auto weight = (logits - top.index_select(0, query)).exp();
  return weight / none.index_add(0, query, weight).index_select(0, query);
}

csrc::AttentionHead head_of(const std::string& name) {
  return name == "relu"   ? csrc::AttentionHead::kRelu
         : name == "quad" ? csrc::AttentionHead::kQuad
                          : csrc::AttentionHead::kLinear;
}

csrc::MarginLoss loss_of(const std::string& name) {
  return name == "linear"        ? csrc::MarginLoss::kLinear
         : name == "exponential" ? csrc::MarginLoss::kExponential
                                 : csrc::MarginLoss::kLogistic;
}

Tensor plain(const Tensor& t) { return t.detach().to(torch::kDouble).contiguous(); }

void check_labels(const Tensor& labels, int64_t queries) {
  TORCH_CHECK(labels.dim() == 1 && labels.size(0) == queries, "AttSvmModel: expected labels [",
              queries, "], but got ", labels.sizes());
  const auto wrong = (labels.abs() != 1).nonzero();
  TORCH_CHECK(wrong.numel() == 0, "AttSvmModel: expected labels +1 or -1, but got ",
              labels[wrong[0].item<int64_t>()].item<double>(), " at ", wrong[0].item<int64_t>());
}

/// For a model whose output is not finite: names the first of the tensors that is to blame.
void check_finite(std::initializer_list<std::pair<const char*, Tensor>> tensors) {
  for (const auto& [name, t] : tensors) {
    if (!t.defined()) continue;
    const auto bad = t.isfinite().logical_not().nonzero();
    if (bad.size(0) == 0) continue;
    const auto first = bad[0].contiguous();
    TORCH_CHECK_VALUE(false, "AttSvmModel: expected finite ", name, ", but got NaN or Inf at ",
                      at::IntArrayRef(first.const_data_ptr<int64_t>(), first.numel()));
  }
}

}  // namespace

AttSvmModelImpl::AttSvmModelImpl(const AttSvmModelOptions& options_) : options(options_) {
  detail::check_positive("AttSvmModel: expected dx", options.dx);
  if (options.dz == 0) options.dz = options.dx;
  if (options.units == 0) options.units = options.dx;
  detail::check_positive("AttSvmModel: expected dz", options.dz);
  detail::check_positive("AttSvmModel: expected units", options.units);
  TORCH_CHECK_VALUE(options.m >= 0, "AttSvmModel: expected m >= 0, but got ", options.m);
  detail::check_choice("AttSvmModel: expected head", options.head, {"linear", "relu", "quad"});
  detail::check_choice("AttSvmModel: expected loss", options.loss,
                       {"logistic", "exponential", "linear"});
  AttSvmModelImpl::reset();
}

void AttSvmModelImpl::reset() {
  const auto uniform = [](int64_t rows, int64_t columns, int64_t width) {
    return (2 * torch::rand({rows, columns}) - 1) / std::sqrt(static_cast<double>(width));
  };
  if (options.m > 0) {
    K = register_parameter("K", uniform(options.dx, options.m, options.dx));
    Q = register_parameter("Q", uniform(options.dz, options.m, options.dz));
  } else {
    W = register_parameter("W", uniform(options.dx, options.dz, options.dz));
  }
  auto head = options.head == "relu" ? torch::randn({options.units, options.dx})
                                     : torch::randn({options.dx});
  v = register_buffer("v", head / head.norm());
}

Tensor AttSvmModelImpl::forward(const Tensor& x, const Tensor& z, const Tensor& row_ptr,
                                const Tensor& tok) {
  const auto rows = tok.defined() ? x.index_select(0, tok) : x;
  const auto query = query_of_entries(row_ptr, rows.size(0));
  const auto y = torch::matmul(z, merged().t());
  const auto s = softmax_over_sets((rows * y.index_select(0, query)).sum(1), query, z.size(0));
  const auto o = torch::zeros({z.size(0), x.size(1)}, rows.options())
                     .index_add(0, query, s.unsqueeze(1) * rows);
  if (options.head == "relu") return torch::relu(torch::matmul(o, v.t())).sum(1);
  const auto linear = torch::matmul(o, v);
  return options.head == "quad" ? linear - options.lbd * o.square().sum(1) : linear;
}

Tensor AttSvmModelImpl::probabilities(const AttSvmSets& sets) const {
  const auto rows = sets.tok.defined() ? sets.x.index_select(0, sets.tok) : sets.x;
  const auto query = query_of_entries(sets.row_ptr, rows.size(0));
  const auto y = torch::matmul(sets.z, merged().t());
  return softmax_over_sets((rows * y.index_select(0, query)).sum(1), query, sets.z.size(0));
}

Tensor AttSvmModelImpl::risk(const AttSvmSets& sets, const Tensor& labels, int64_t inputs) {
  check_labels(labels, sets.z.size(0));
  const auto u = labels * forward(sets.x, sets.z, sets.row_ptr, sets.tok);
  const auto losses = options.loss == "linear"        ? -u
                      : options.loss == "exponential" ? (-u).exp()
                                                      : torch::softplus(-u);
  return losses.sum() / (inputs > 0 ? inputs : sets.z.size(0));
}

AttSvmGradient AttSvmModelImpl::analytic_grad(const AttSvmSets& sets, const Tensor& labels,
                                              int64_t inputs) const {
  const auto tok = sets.tok.defined() ? std::optional<Tensor>(sets.tok.contiguous()) : std::nullopt;
  const detail::TokenSetTensors checked{"AttSvmModel", sets.x, sets.row_ptr, tok};
  detail::check_token_sets(checked);
  detail::check_token_values(checked, {});
  check_labels(labels, sets.z.size(0));
  const auto x = plain(sets.x), z = plain(sets.z), y = plain(labels), head = plain(v),
             weights = plain(merged());
  const auto row_ptr = sets.row_ptr.contiguous();
  auto view = detail::token_sets_view<double>(x, row_ptr, tok);
  view.z = z.const_data_ptr<double>();
  view.dz = z.size(1);
  const csrc::AttentionModel model{.sets = view,
                                   .labels = y.const_data_ptr<double>(),
                                   .head = head_of(options.head),
                                   .v = head.const_data_ptr<double>(),
                                   .units = options.head == "relu" ? head.size(0) : 1,
                                   .lbd = options.lbd,
                                   .loss = loss_of(options.loss),
                                   .inputs = static_cast<double>(inputs > 0 ? inputs : z.size(0))};
  std::vector<double> logits;
  csrc::AttentionState state;
  csrc::attention_logits(model, weights.const_data_ptr<double>(), logits);
  csrc::evaluate_attention(model, logits.data(), state);
  const auto finite = [](double f) { return std::isfinite(f); };
  if (!std::all_of(state.f.begin(), state.f.end(), finite))
    check_finite({{"x", x}, {"z", z}, {"W", W}, {"K", K}, {"Q", Q}, {"v", v}});
  auto dW = torch::empty_like(weights);
  csrc::attention_gradient(model, state, dW.mutable_data_ptr<double>());
  AttSvmGradient result{.risk = state.risk,
                        .f = torch::tensor(state.f, torch::kDouble),
                        .s = torch::tensor(state.s, torch::kDouble),
                        .score = torch::tensor(state.gamma, torch::kDouble),
                        .dlogits = torch::tensor(state.g, torch::kDouble),
                        .dW = {},
                        .dK = {},
                        .dQ = {}};
  if (options.m > 0) {
    result.dK = torch::matmul(dW, plain(Q));
    result.dQ = torch::matmul(dW.t(), plain(K));
  } else {
    result.dW = dW;
  }
  return result;
}

void AttSvmModelImpl::pretty_print(std::ostream& stream) const {
  stream << "kktorch::AttSvmModel(dx=" << options.dx << ", dz=" << options.dz << ", m=" << options.m
         << ", head=" << options.head << ", loss=" << options.loss << ")";
}

}  // namespace kktorch
