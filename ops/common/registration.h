#pragma once
// What every op needs besides its formula.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <initializer_list>
#include <optional>
#include <string_view>

namespace kktorch::detail {

/// Handle of an op by its full name, for a `static const` in the op's public function:
///     static const auto op = op_handle<decltype(my_op)>("kktorch::my_op");
template <typename Signature>
c10::TypedOperatorHandle<Signature> op_handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

/// The dispatcher calls a kernel with loose arguments; ours take one aggregate that names them.
/// With `R kernel(const Arguments&)` and the op's signature, `Packed<Arguments, kernel,
/// Signature>::call` is what to register.
template <typename Arguments, auto kernel, typename Signature>
struct Packed;

template <typename Arguments, auto kernel, typename R, typename... Args>
struct Packed<Arguments, kernel, R(Args...)> {
  static R call(Args... args) { return kernel(Arguments{args...}); }
};

/// Boxed Autograd kernel of ops whose outputs are not differentiable: runs below autograd, and the
/// results have no history.
void not_differentiable(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                        torch::jit::Stack* stack);

/// Raises NotImplementedError if an input carries a tangent of forward-mode differentiation.
void refuse_forward_mode(std::string_view op,
                         std::initializer_list<std::optional<at::Tensor>> inputs);

/// Boxed Autograd kernel of backward ops: runs below autograd; differentiating the result raises
/// NotImplementedError
/// "<op>: double backward is not supported", naming <op>_ref where that exists. Merely recording
/// the graph is fine.
void refuse_double_backward(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                            torch::jit::Stack* stack);

/// Boxed Autograd kernel of ops that no gradient passes through: runs below autograd;
/// differentiating the result raises NotImplementedError "<op>: differentiation is not supported".
void refuse_differentiation(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                            torch::jit::Stack* stack);

}  // namespace kktorch::detail
