#include "train/loop/optimiser.h"

#include <fmt/ostream.h>
#include <torch/nn/utils/clip_grad.h>

#include <cmath>
#include <numbers>

#include "train/common/error.h"

namespace kktorch {
namespace {

using torch::optim::AdamWOptions;
using torch::optim::AdamWParamState;
using torch::optim::OptimizerParamGroup;

bool is_beta(const std::string& name) { return name == "beta" || name.ends_with(".beta"); }

std::vector<OptimizerParamGroup> parameter_groups(
    const torch::OrderedDict<std::string, at::Tensor>& parameters, const AdamWOptions& defaults) {
  std::vector<at::Tensor> decayed, undecayed;
  for (const auto& item : parameters)
    (is_beta(item.key()) ? undecayed : decayed).push_back(item.value());
  auto without_decay = std::make_unique<AdamWOptions>(defaults);
  without_decay->weight_decay(0);
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(decayed, std::make_unique<AdamWOptions>(defaults));
  if (!undecayed.empty()) groups.emplace_back(undecayed, std::move(without_decay));
  return groups;
}

AdamWOptions adamw_options(const OptimiserOptions& options) {
  return AdamWOptions(options.learning_rate).weight_decay(options.weight_decay);
}

/// Entry `kind`/`name` of a saved state, of the shape of its parameter.
at::Tensor saved_moment(const TensorMap& state, const std::string& kind, const std::string& name,
                        const at::Tensor& parameter) {
  const auto found = state.find(kind + "/" + name);
  if (found == state.end() || found->second.sizes() != parameter.sizes())
    fail("checkpoint: expected the optimizer state {}/{} of shape {}, but got {}", kind, name,
         fmt::streamed(parameter.sizes()),
         found == state.end() ? "none" : fmt::format("{}", fmt::streamed(found->second.sizes())));
  return found->second.clone();
}

}  // namespace

double scheduled_learning_rate(const OptimiserOptions& options, int64_t step, int64_t total_steps) {
  const auto now = static_cast<double>(step), total = static_cast<double>(total_steps);
  const double warmup_steps = std::ceil(options.warmup * total);
  if (now < warmup_steps) return options.learning_rate * (now + 1) / warmup_steps;
  const double progress = (now - warmup_steps) / std::max(1.0, total - warmup_steps);
  if (options.decay == "linear") return options.learning_rate * (1 - progress);
  return options.learning_rate * (1 + std::cos(std::numbers::pi * progress)) / 2;
}

Optimiser::Optimiser(const torch::nn::Module& model, OptimiserOptions options, int64_t total_steps)
    : options_(std::move(options)),
      total_steps_(total_steps),
      parameters_(model.named_parameters()),
      adamw_(parameter_groups(parameters_, adamw_options(options_)), adamw_options(options_)) {
  if (options_.decay != "cosine" && options_.decay != "linear")
    fail("training: expected decay in cosine, linear, but got '{}'", options_.decay);
}

bool Optimiser::update(int64_t step) {
  if (!std::isfinite(torch::nn::utils::clip_grad_norm_(parameters_.values(), options_.clip)))
    return false;
  for (auto& group : adamw_.param_groups()) group.options().set_lr(learning_rate(step));
  adamw_.step();
  return true;
}

TensorMap Optimiser::state() const {
  TensorMap result;
  for (const auto& item : parameters_) {
    const auto found = adamw_.state().find(item.value().unsafeGetTensorImpl());
    if (found == adamw_.state().end()) continue;
    const auto& state = static_cast<const AdamWParamState&>(*found->second);
    result["step/" + item.key()] = at::scalar_tensor(state.step(), at::kLong);
    result["exp_avg/" + item.key()] = state.exp_avg();
    result["exp_avg_sq/" + item.key()] = state.exp_avg_sq();
  }
  return result;
}

void Optimiser::load_state(const TensorMap& saved) {
  adamw_.state().clear();
  for (const auto& item : parameters_) {
    const auto step = saved.find("step/" + item.key());
    if (step == saved.end()) continue;  // no update yet, or a parameter that no gradient reaches
    auto state = std::make_unique<AdamWParamState>();
    state->step(step->second.item<int64_t>());
    state->exp_avg(saved_moment(saved, "exp_avg", item.key(), item.value()));
    state->exp_avg_sq(saved_moment(saved, "exp_avg_sq", item.key(), item.value()));
    adamw_.state()[item.value().unsafeGetTensorImpl()] = std::move(state);
  }
}

}  // namespace kktorch
