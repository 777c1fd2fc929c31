#include "ops/common/registration.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <memory>
#include <string>
#include <type_traits>
#include <utility>

namespace kktorch::detail {
namespace {

struct RefusedNode : torch::autograd::Node {
  RefusedNode(std::string message, torch::autograd::edge_list&& edges)
      : Node(std::move(edges)), message_(std::move(message)) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&&) override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, message_);
  }

  std::string message_;
};

/// LibTorch held nodes by std::shared_ptr in 2.11 and holds them by c10::intrusive_ptr in 2.15.
template <typename N, typename... Args>
auto make_node(Args&&... args) {
  using Pointer = decltype(torch::autograd::Edge::function);
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>)
    return std::make_shared<N>(std::forward<Args>(args)...);
  else
    return c10::make_intrusive<N>(std::forward<Args>(args)...);
}

/// "<op>: <what> is not supported", and the op that supports it, if there is one.
std::string refusal(const std::string& op, const std::string& what) {
  const bool has_ref =
      c10::Dispatcher::singleton().findSchema({"kktorch::" + op + "_ref", ""}).has_value();
  return op + ": " + what + " is not supported" + (has_ref ? "; use " + op + "_ref" : "");
}

// kktorch::_attention_bn_backward -> attention_bn
std::string differentiated_op(const c10::OperatorHandle& backward) {
  const auto name = backward.schema().name().substr(std::string("kktorch::_").size());
  return name.substr(0, name.rfind("_backward"));
}

/// Runs the op below autograd; its results raise `message` where they are differentiated.
void run_refusing(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack,
                  std::string message) {
  torch::autograd::variable_list inputs;
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size()))
    if (value.isTensor() && value.toTensor().defined()) inputs.push_back(value.toTensor());

  const bool record = torch::autograd::compute_requires_grad(inputs);
  {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  }
  if (!record) return;
  const auto node =
      make_node<RefusedNode>(std::move(message), torch::autograd::collect_next_edges(inputs));
  for (const auto& value : torch::jit::last(*stack, op.schema().returns().size()))
    if (at::isFloatingType(value.toTensor().scalar_type()))
      torch::autograd::set_history(value.toTensor(), node);
}

}  // namespace

void not_differentiable(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                        torch::jit::Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

void refuse_forward_mode(std::string_view op,
                         std::initializer_list<std::optional<at::Tensor>> inputs) {
  for (const auto& input : inputs)
    TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(input),
                                refusal(std::string(op), "forward-mode AD"));
}

void refuse_double_backward(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                            torch::jit::Stack* stack) {
  run_refusing(op, keys, stack, refusal(differentiated_op(op), "double backward"));
}

void refuse_differentiation(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                            torch::jit::Stack* stack) {
  const auto name = op.schema().name().substr(std::string("kktorch::").size());
  run_refusing(op, keys, stack, refusal(name, "differentiation"));
}

}  // namespace kktorch::detail
