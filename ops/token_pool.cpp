#include "ops/token_pool.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <limits>

#include "csrc/attention/token_pool.h"
#include "ops/attention/problem.h"
#include "ops/common/head_rows.h"
#include "ops/common/registration.h"

// Pooling is linear in its input, and its adjoint spreads a window's gradient over the valid tokens
// of the window, divided by their number. The adjoint's adjoint is pooling again, so that both are
// differentiable any number of times.

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using TwoTensors = std::tuple<Tensor, Tensor>;

constexpr std::string_view kName = "token_pool";

using ForwardSignature = TwoTensors(const Tensor& input, c10::SymInt window,
                                    const OptionalTensor& key_padding_mask, std::string_view tail,
                                    c10::SymInt num_special);

struct Forward {  // the arguments of _token_pool_forward
  const Tensor& input;
  c10::SymInt window;
  const OptionalTensor& key_padding_mask;
  std::string_view tail;
  c10::SymInt num_special;
};

using BackwardSignature = Tensor(const Tensor& grad_pooled, const Tensor& count,
                                 const OptionalTensor& key_padding_mask, c10::SymInt length,
                                 c10::SymInt window, std::string_view tail,
                                 c10::SymInt num_special);

struct Backward {  // the arguments of _token_pool_backward
  const Tensor &grad_pooled, &count;
  const OptionalTensor& key_padding_mask;
  c10::SymInt length, window;
  std::string_view tail;
  c10::SymInt num_special;
};

const auto& forward_op() {
  static const auto op = detail::op_handle<ForwardSignature>("kktorch::_token_pool_forward");
  return op;
}

const auto& backward_op() {
  static const auto op = detail::op_handle<BackwardSignature>("kktorch::_token_pool_backward");
  return op;
}

// ---- checks and shapes ----

void check_windows(const c10::SymInt& length, const c10::SymInt& window, std::string_view tail,
                   const c10::SymInt& num_special) {
  TORCH_CHECK_VALUE(window >= 1, kName, ": expected window >= 1, but got ", window);
  TORCH_CHECK_VALUE(tail == "ceil" || tail == "drop", kName,
                    ": expected tail 'ceil' or 'drop', but got '", tail, "'");
  TORCH_CHECK_VALUE(num_special >= 0 && num_special <= length, kName,
                    ": expected 0 <= num_special <= ", length, ", but got ", num_special);
}

void check_padding(const OptionalTensor& padding, const c10::SymInt& B, const c10::SymInt& N,
                   c10::Device device) {
  if (!padding) return;
  TORCH_CHECK(padding->scalar_type() == at::kBool && padding->dim() == 2 &&
                  padding->sym_size(0) == B && padding->sym_size(1) == N &&
                  padding->device() == device,
              kName, ": expected key_padding_mask bool [", B, ",", N, "], True = ignore, but got ",
              padding->scalar_type(), " ", padding->sym_sizes(), " on ", padding->device());
}

void check_forward(const Forward& a) {
  const auto& x = a.input;
  TORCH_CHECK((x.dim() == 3 || x.dim() == 4) && detail::is_supported_dtype(x.scalar_type()), kName,
              ": expected input of shape [B, N, C] or [B, H, N, C] and a dtype in {float16, "
              "bfloat16, float32, float64}, but got ",
              x.scalar_type(), " ", x.sym_sizes());
  check_windows(x.sym_size(-2), a.window, a.tail, a.num_special);
  check_padding(a.key_padding_mask, x.sym_size(0), x.sym_size(-2), x.device());
  const auto N = x.sym_size(-2);
  TORCH_CHECK_VALUE(a.tail == "ceil" || N == 0 || a.num_special > 0 || N >= a.window, kName,
                    ": expected tail='drop' to leave a window, but got N=", N,
                    " and window=", a.window);
}

c10::SymInt windows_of(const Forward& a) {
  return csrc::window_count<c10::SymInt>(a.input.sym_size(-2), a.window, a.num_special,
                                         a.tail == "drop");
}

void check_backward(const Backward& a) {
  const auto &grad = a.grad_pooled, &count = a.count;
  check_windows(a.length, a.window, a.tail, a.num_special);
  const auto windows =
      csrc::window_count<c10::SymInt>(a.length, a.window, a.num_special, a.tail == "drop");
  TORCH_CHECK((grad.dim() == 3 || grad.dim() == 4) &&
                  detail::is_supported_dtype(grad.scalar_type()) && grad.sym_size(-2) == windows,
              kName, ": expected grad_pooled floating [B, ", windows, ", C] or [B, H, ", windows,
              ", C], but got ", grad.scalar_type(), " ", grad.sym_sizes());
  TORCH_CHECK(count.scalar_type() == at::kFloat && count.dim() == 2 &&
                  count.sym_size(0) == grad.sym_size(0) && count.sym_size(1) == windows &&
                  count.device() == grad.device(),
              kName, ": expected count float32 [", grad.sym_size(0), ",", windows, "], but got ",
              count.scalar_type(), " ", count.sym_sizes(), " on ", count.device());
  check_padding(a.key_padding_mask, grad.sym_size(0), a.length, grad.device());
}

/// `sizes` of an input with another number of tokens.
c10::SymDimVector with_length(c10::SymIntArrayRef sizes, const c10::SymInt& length) {
  c10::SymDimVector result(sizes.begin(), sizes.end());
  result[result.size() - 2] = length;
  return result;
}

// ---- Meta ----

TwoTensors forward_meta(const Forward& a) {
  check_forward(a);
  const auto windows = windows_of(a);
  const auto options = a.input.options();
  return {at::empty_symint(with_length(a.input.sym_sizes(), windows), options),
          at::empty_symint({a.input.sym_size(0), windows}, options.dtype(at::kFloat))};
}

Tensor backward_meta(const Backward& a) {
  check_backward(a);
  const auto& grad = a.grad_pooled;
  const auto sizes = with_length(grad.sym_sizes(), a.length);
  return sizes.size() == 4 ? detail::empty_heads_last(sizes, grad.options())
                           : at::empty_symint(sizes, grad.options());
}

// ---- CPU ----

/// [B, H, N, C] with contiguous channels, H = 1 for three dimensions.
Tensor as_heads(const Tensor& t) {
  return detail::channels_contiguous(t.dim() == 3 ? t.unsqueeze(1) : t);
}

csrc::Windows windows_of(int64_t length, const c10::SymInt& window, std::string_view tail,
                         const c10::SymInt& num_special) {
  return {length, window.expect_int(), num_special.expect_int(), tail == "drop"};
}

/// padding row of sample b, or null.
const bool* padding_row(const Tensor& padding, int64_t b) {
  return padding.defined() ? padding.const_data_ptr<bool>() + b * padding.size(1) : nullptr;
}

Tensor contiguous_padding(const OptionalTensor& padding) {
  return padding ? padding->contiguous() : Tensor();
}

void count_valid(const csrc::Windows& windows, const bool* padding, float* count) {
  for (int64_t w = 0; w < windows.count(); ++w) {
    int64_t valid = 0;
    for (int64_t j = windows.begin(w); j < windows.end(w); ++j) valid += !(padding && padding[j]);
    count[w] = static_cast<float>(valid);
  }
}

/// f(b, h, first, last, scratch) on runs of windows of every head, in parallel.
template <typename A, typename F>
void for_each_window_run(const Tensor& heads, const csrc::Windows& windows, const F& f) {
  constexpr int64_t kRun = 64;
  const int64_t H = heads.size(1), C = heads.size(3), count = windows.count();
  const int64_t runs = (count + kRun - 1) / kRun;
  detail::for_each<A>(heads.size(0) * H * runs, kRun * windows.window * C, 2 * C,
                      [&](int64_t unit, A* scratch) {
                        const int64_t head = unit / runs, first = unit % runs * kRun;
                        f(head / H, head % H, first, std::min(count, first + kRun), scratch);
                      });
}

TwoTensors forward_cpu(const Forward& a) {
  auto [pooled, count] = forward_meta(a);
  const auto windows = windows_of(a.input.size(-2), a.window, a.tail, a.num_special);
  const auto input = as_heads(a.input), out = as_heads(pooled);
  const auto padding = contiguous_padding(a.key_padding_mask);
  float* const counts = count.mutable_data_ptr<float>();
  for (int64_t b = 0; b < input.size(0); ++b)
    count_valid(windows, padding_row(padding, b), counts + b * windows.count());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, a.input.scalar_type(), "token_pool", [&] {
        const auto& kernels = csrc::pool_kernels<scalar_t>();
        for_each_window_run<csrc::acc_t<scalar_t>>(
            input, windows, [&](int64_t b, int64_t h, int64_t first, int64_t last, auto* scratch) {
              kernels.forward(detail::rows_of<scalar_t>(input, b, h), padding_row(padding, b),
                              counts + b * windows.count(), windows, first, last, input.size(3),
                              detail::mutable_rows_of<scalar_t>(out, b, h), scratch);
            });
      });
  return {pooled, count};
}

Tensor backward_cpu(const Backward& a) {
  auto grad_input = backward_meta(a);
  const auto windows = windows_of(a.length.expect_int(), a.window, a.tail, a.num_special);
  if (windows.count() == 0 || windows.end(windows.count() - 1) < windows.length)
    grad_input.zero_();  // tokens that no window holds
  const auto grad = as_heads(a.grad_pooled), out = as_heads(grad_input);
  const auto padding = contiguous_padding(a.key_padding_mask);
  const auto count = a.count.contiguous();
  const float* const counts = count.const_data_ptr<float>();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, grad.scalar_type(), "_token_pool_backward", [&] {
        const auto& kernels = csrc::pool_kernels<scalar_t>();
        for_each_window_run<csrc::acc_t<scalar_t>>(
            grad, windows, [&](int64_t b, int64_t h, int64_t first, int64_t last, auto* scratch) {
              kernels.backward(detail::rows_of<scalar_t>(grad, b, h), padding_row(padding, b),
                               counts + b * windows.count(), windows, first, last, grad.size(3),
                               detail::mutable_rows_of<scalar_t>(out, b, h), scratch);
            });
      });
  return grad_input;
}

// ---- a composition of ATen ops: CUDA, and the maximum ----

/// Tokens [.., N, C] behind the special ones as [.., windows, s, C]; a short last window is filled
/// with `fill`, a dropped one is left out.
Tensor windows_view(const Tensor& tokens, const c10::SymInt& window, bool drop_tail,
                    const c10::SymInt& num_special, double fill) {
  const auto body = tokens.sym_size(-2) - num_special;
  const auto windows = csrc::window_count<c10::SymInt>(body, window, 0, drop_tail);
  auto rest = tokens.narrow_symint(-2, num_special, drop_tail ? windows * window : body);
  if (!drop_tail) rest = at::constant_pad_nd_symint(rest, {0, 0, 0, windows * window - body}, fill);
  auto sizes = with_length(rest.sym_sizes(), windows);
  sizes.insert(sizes.end() - 1, window);
  return rest.reshape_symint(sizes);
}

/// True for valid tokens: [B, N, 1] or [B, 1, N, 1].
Tensor valid_tokens(const Forward& a) {
  const auto& x = a.input;
  const auto valid = a.key_padding_mask ? a.key_padding_mask->logical_not()
                                        : at::ones_symint({x.sym_size(0), x.sym_size(-2)},
                                                          x.options().dtype(at::kBool));
  return (x.dim() == 3 ? valid : valid.unsqueeze(1)).unsqueeze(-1);
}

/// n_w: [B, Nw].
Tensor count_windows(const Forward& a, const Tensor& valid) {
  const bool drop = a.tail == "drop";
  const auto weight = valid.to(at::kFloat);
  const auto special = weight.narrow_symint(-2, 0, a.num_special);
  const auto body = windows_view(weight, a.window, drop, a.num_special, 0).sum(-2);
  return at::cat({special, body}, -2).flatten(1);
}

TwoTensors forward_aten(const Forward& a) {
  check_forward(a);
  const auto valid = valid_tokens(a);
  const auto count = count_windows(a, valid);
  const auto acc = at::toOpMathType(a.input.scalar_type());
  const auto x = a.input.to(acc).masked_fill(valid.logical_not(), 0);
  const auto sums = at::cat({x.narrow_symint(-2, 0, a.num_special),
                             windows_view(x, a.window, a.tail == "drop", a.num_special, 0).sum(-2)},
                            -2);
  const auto n = (x.dim() == 3 ? count : count.unsqueeze(1)).unsqueeze(-1).clamp_min(1).to(acc);
  return {(sums / n).to(a.input.scalar_type()), count};
}

Tensor backward_aten(const Backward& a) {
  auto result = backward_meta(a);
  const int64_t window = a.window.expect_int(), P = a.num_special.expect_int();
  const bool heads = a.grad_pooled.dim() == 4;
  const auto lift = [&](const Tensor& t) { return (heads ? t.unsqueeze(1) : t).unsqueeze(-1); };
  const auto share = a.grad_pooled / lift(a.count.clamp_min(1).to(a.grad_pooled.scalar_type()));
  auto spread = at::cat({share.narrow(-2, 0, P),
                         share.narrow(-2, P, share.size(-2) - P).repeat_interleave(window, -2)},
                        -2);
  const int64_t missing = result.size(-2) - spread.size(-2);
  spread = missing > 0 ? at::constant_pad_nd(spread, {0, 0, 0, missing})
                       : spread.narrow(-2, 0, result.size(-2));
  if (a.key_padding_mask) spread = spread.masked_fill(lift(*a.key_padding_mask), 0);
  return result.copy_(spread);
}

TwoTensors max_pool(const Forward& a) {
  check_forward(a);
  constexpr double kLowest = -std::numeric_limits<double>::infinity();
  const auto valid = valid_tokens(a);
  const auto count = count_windows(a, valid);
  const auto x = a.input.masked_fill(valid.logical_not(), kLowest);
  const auto pooled =
      at::cat({x.narrow_symint(-2, 0, a.num_special),
               windows_view(x, a.window, a.tail == "drop", a.num_special, kLowest).amax(-2)},
              -2);
  const auto empty = (x.dim() == 3 ? count : count.unsqueeze(1)).unsqueeze(-1) == 0;
  return {pooled.masked_fill(empty, 0), count};
}

// ---- Autograd ----

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

void save_windows(torch::autograd::AutogradContext* ctx, const c10::SymInt& length,
                  const c10::SymInt& window, std::string_view tail,
                  const c10::SymInt& num_special) {
  auto& saved = ctx->saved_data;
  saved["length"] = length;
  saved["window"] = window;
  saved["tail"] = std::string(tail);
  saved["num_special"] = num_special;
}

struct TokenPool : torch::autograd::Function<TokenPool> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& input, const Forward& a) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [pooled, count] =
        forward_op().call(input, a.window, a.key_padding_mask, a.tail, a.num_special);
    ctx->save_for_backward({count, a.key_padding_mask.value_or(Tensor())});
    ctx->mark_non_differentiable({count});
    save_windows(ctx, input.sym_size(-2), a.window, a.tail, a.num_special);
    return {pooled, count};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto t = ctx->get_saved_variables();
    auto& saved = ctx->saved_data;
    return {backward_op().call(grads[0], t[0], optional(t[1]), saved["length"].toSymInt(),
                               saved["window"].toSymInt(), saved["tail"].toStringRef(),
                               saved["num_special"].toSymInt()),
            Tensor()};
  }
};

struct TokenPoolBackward : torch::autograd::Function<TokenPoolBackward> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& grad_pooled,
                        const Backward& a) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({a.key_padding_mask.value_or(Tensor())});
    save_windows(ctx, a.length, a.window, a.tail, a.num_special);
    return backward_op().call(grad_pooled, a.count, a.key_padding_mask, a.length, a.window, a.tail,
                              a.num_special);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto t = ctx->get_saved_variables();
    auto& saved = ctx->saved_data;
    return {std::get<0>(forward_op().call(grads[0], saved["window"].toSymInt(), optional(t[0]),
                                          saved["tail"].toStringRef(),
                                          saved["num_special"].toSymInt())),
            Tensor()};
  }
};

TwoTensors forward_autograd(const Forward& a) {
  detail::refuse_forward_mode(kName, {a.input});
  const auto r = TokenPool::apply(a.input, a);
  return {r[0], r[1]};
}

Tensor backward_autograd(const Backward& a) { return TokenPoolBackward::apply(a.grad_pooled, a); }

// ---- the public op ----

TwoTensors token_pool_composite(const Tensor& input, c10::SymInt window,
                                const OptionalTensor& key_padding_mask, std::string_view mode,
                                std::string_view tail, c10::SymInt num_special) {
  TORCH_CHECK_VALUE(mode == "avg" || mode == "max", kName,
                    ": expected mode 'avg' or 'max', but got '", mode, "'");
  if (mode == "max") return max_pool({input, window, key_padding_mask, tail, num_special});
  return forward_op().call(input, window, key_padding_mask, tail, num_special);
}

using PublicSignature = TwoTensors(const Tensor& input, c10::SymInt window,
                                   const OptionalTensor& key_padding_mask, std::string_view mode,
                                   std::string_view tail, c10::SymInt num_special);

template <auto kernel>
constexpr auto* forward_call = &detail::Packed<Forward, kernel, ForwardSignature>::call;
template <auto kernel>
constexpr auto* backward_call = &detail::Packed<Backward, kernel, BackwardSignature>::call;

}  // namespace

TwoTensors token_pool(const Tensor& input, const c10::SymInt& window,
                      const OptionalTensor& key_padding_mask, std::string_view mode,
                      std::string_view tail, const c10::SymInt& num_special) {
  static const auto op = detail::op_handle<PublicSignature>("kktorch::token_pool");
  return op.call(input, window, key_padding_mask, mode, tail, num_special);
}

Tensor detail::token_pool_backward(const Tensor& grad_pooled, const Tensor& count,
                                   const OptionalTensor& key_padding_mask,
                                   const c10::SymInt& length, const c10::SymInt& window,
                                   std::string_view tail, const c10::SymInt& num_special) {
  return backward_op().call(grad_pooled, count, key_padding_mask, length, window, tail,
                            num_special);
}

// No autocast kernels: like other pooling, it keeps the dtype of its input.
TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "token_pool(Tensor input, SymInt window, Tensor? key_padding_mask=None, *, "
      "str mode=\"avg\", str tail=\"ceil\", SymInt num_special=0) -> (Tensor pooled, Tensor count)",
      tags);
  m.def(
      "_token_pool_forward(Tensor input, SymInt window, Tensor? key_padding_mask, str tail, "
      "SymInt num_special) -> (Tensor pooled, Tensor count)",
      tags);
  m.def(
      "_token_pool_backward(Tensor grad_pooled, Tensor count, Tensor? key_padding_mask, "
      "SymInt length, SymInt window, str tail, SymInt num_special) -> Tensor",
      tags);
}
TORCH_LIBRARY_IMPL(kktorch, CompositeImplicitAutograd, m) {
  m.impl("token_pool", &token_pool_composite);
}
TORCH_LIBRARY_IMPL(kktorch, CPU, m) {
  m.impl("_token_pool_forward", forward_call<forward_cpu>);
  m.impl("_token_pool_backward", backward_call<backward_cpu>);
}
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) {
  m.impl("_token_pool_forward", forward_call<forward_aten>);
  m.impl("_token_pool_backward", backward_call<backward_aten>);
}
TORCH_LIBRARY_IMPL(kktorch, Meta, m) {
  m.impl("_token_pool_forward", forward_call<forward_meta>);
  m.impl("_token_pool_backward", backward_call<backward_meta>);
}
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  m.impl("_token_pool_forward", forward_call<forward_autograd>);
  m.impl("_token_pool_backward", backward_call<backward_autograd>);
}

}  // namespace kktorch
