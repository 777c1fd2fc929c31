#include "ops/mhgd.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "ops/common/registration.h"
#include "ops/dynamics/checks.h"
#include "ops/dynamics/heads.h"

namespace kktorch {
namespace {

using at::Tensor;
using TwoTensors = std::tuple<Tensor, Tensor>;
using LossAndGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// ---- checks ----

void check_model(std::string_view op, const Tensor& X, const Tensor& W, const Tensor& U,
                 int64_t chunk_bytes = 1) {
  detail::check_single_or_double(op, "X", X);
  TORCH_CHECK(X.dim() == 3 && W.dim() == 3, op, ": expected X [n, T, d] and W [H, d, d], but got ",
              X.sym_sizes(), " and ", W.sym_sizes());
  const auto n = X.sym_size(0), T = X.sym_size(1), d = X.sym_size(2), H = W.sym_size(0);
  TORCH_CHECK_VALUE(n >= 1 && T >= 1 && d >= 1 && H >= 1, op,
                    ": expected n, T, d, H >= 1, but got ", n, ", ", T, ", ", d, ", ", H);
  detail::check_like(op, "W", W, X, {H, d, d});
  detail::check_like(op, "U", U, X, {H, T, d});
  TORCH_CHECK_VALUE(chunk_bytes >= 1, op, ": expected chunk_bytes >= 1, but got ", chunk_bytes);
}

void check_features(std::string_view op, const Tensor& X, const Tensor& Z, const Tensor& G,
                    const Tensor& dW, const Tensor& dU) {
  check_model(op, X, dW, dU);
  const auto n = X.sym_size(0), T = X.sym_size(1), d = X.sym_size(2), H = dW.sym_size(0);
  detail::check_like(op, "Z", Z, X, {n, T, H, d});
  detail::check_like(op, "G", G, X, {n, T, H, d});
}

// ---- ATen ----

/// X W_h for all heads: [n, T, H, d].
Tensor project(const Tensor& X, const Tensor& W) {
  const auto n = X.sym_size(0), T = X.sym_size(1), d = X.sym_size(2), H = W.sym_size(0);
  const auto columns = W.permute({1, 0, 2}).reshape_symint({d, H * d});
  return at::matmul(X, columns).reshape_symint({n, T, H, d});
}

Tensor attention_ref(const Tensor& X, const Tensor& W) {  // [n, T H, T]
  const auto XW = project(X, W).flatten(1, 2);
  return at::softmax(at::bmm(XW, X.transpose(1, 2)), -1);
}

/// Divides by sqrt H; H may be symbolic.
Tensor over_root(const Tensor& t, const Tensor& W) {
  return t / at::ones_symint({W.sym_size(0)}, t.options()).sum().sqrt();
}

Tensor logits_ref(const Tensor& X, const Tensor& W, const Tensor& U) {
  check_model("mhgd_logits_ref", X, W, U);
  const auto Z = at::bmm(attention_ref(X, W), X);  // [n, T H, d]
  const auto u = U.permute({1, 0, 2}).flatten(0, 1);
  return over_root((Z * u).sum({1, 2}), W);
}

TwoTensors features_aten(const Tensor& X, const Tensor& W, const Tensor& U) {
  check_model("mhgd_features", X, W, U);
  const int64_t n = X.size(0), T = X.size(1), d = X.size(2), H = W.size(0);
  const auto P = attention_ref(X, W), Z = at::bmm(P, X);
  const auto u = U.permute({1, 0, 2}).reshape({T * H, d});
  const auto Y = at::matmul(u, X.transpose(1, 2));
  const auto st = (Z * u).sum(-1, true);
  const auto G = at::bmm(P * (Y - st), X);
  return {Z.view({n, T, H, d}), G.view({n, T, H, d})};
}

int64_t samples_of_chunk(const Tensor& X, const Tensor& W, int64_t chunk_bytes) {
  const auto T = X.size(1), d = X.size(2), H = W.size(0);
  return std::max<int64_t>(1, chunk_bytes / (T * H * (2 * T + 3 * d) * X.itemsize()));
}

Tensor logits_aten(const Tensor& X, const Tensor& W, const Tensor& U, int64_t chunk_bytes) {
  check_model("mhgd_logits", X, W, U, chunk_bytes);
  const int64_t step = samples_of_chunk(X, W, chunk_bytes);
  std::vector<Tensor> parts;
  for (int64_t i = 0; i < X.size(0); i += step)
    parts.push_back(logits_ref(X.narrow(0, i, std::min(step, X.size(0) - i)), W, U));
  return at::cat(parts);
}

TwoTensors backward_aten(const Tensor& r, const Tensor& X, const Tensor& W, const Tensor& U,
                         int64_t chunk_bytes) {
  check_model("mhgd_logits", X, W, U, chunk_bytes);
  detail::check_like("mhgd_logits", "r", r, X, {X.sym_size(0)});
  const int64_t step = samples_of_chunk(X, W, chunk_bytes), d = X.size(2), H = W.size(0);
  const auto weights = r / std::sqrt(static_cast<double>(H));
  Tensor gW = at::zeros_like(W), gU = at::zeros_like(U);
  for (int64_t i = 0; i < X.size(0); i += step) {
    const int64_t count = std::min(step, X.size(0) - i);
    const auto part = X.narrow(0, i, count), w = weights.narrow(0, i, count).view({count, 1, 1});
    const auto [Z, G] = features_aten(part, W, U);
    gU += (w.unsqueeze(-1) * Z).sum(0).permute({1, 0, 2});
    const auto rows = (w * part).reshape({-1, d});
    gW += at::matmul(rows.t(), G.reshape({-1, H * d})).view({d, H, d}).permute({1, 0, 2});
  }
  return {gW, gU};
}

LossAndGradients loss_grad_meta(const Tensor& X, const Tensor& y, const Tensor& W, const Tensor& U,
                                int64_t chunk_bytes) {
  check_model("mhgd_loss_grad", X, W, U, chunk_bytes);
  detail::check_like("mhgd_loss_grad", "y", y, X, {X.sym_size(0)});
  const auto empty = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  return {at::empty({}, X.options().dtype(at::kDouble)), empty(y), empty(W), empty(U)};
}

LossAndGradients loss_grad_aten(const Tensor& X, const Tensor& y, const Tensor& W, const Tensor& U,
                                int64_t chunk_bytes) {
  loss_grad_meta(X, y, W, U, chunk_bytes);
  const auto phi = logits_aten(X, W, U, chunk_bytes);
  const auto margin = (y * phi).to(at::kDouble);
  const auto r = (-y * (-margin).sigmoid() / static_cast<double>(X.size(0))).to(X.scalar_type());
  const auto [gW, gU] = backward_aten(r, X, W, U, chunk_bytes);
  const auto loss = (-margin).clamp_min(0) + (-margin.abs()).exp().log1p();
  return {loss.mean(), phi, gW, gU};
}

Tensor jvp_meta(const Tensor& X, const Tensor& Z, const Tensor& G, const Tensor& dW,
                const Tensor& dU) {
  check_features("mhgd_jvp", X, Z, G, dW, dU);
  return at::empty_symint({X.sym_size(0)}, X.options());
}

Tensor jvp(const Tensor& X, const Tensor& Z, const Tensor& G, const Tensor& dW, const Tensor& dU) {
  check_features("mhgd_jvp", X, Z, G, dW, dU);
  const auto of_U = at::matmul(Z.flatten(1), dU.permute({1, 0, 2}).flatten());
  const auto of_W = (G * project(X, dW)).flatten(1).sum(1);
  return (of_U + of_W) / std::sqrt(static_cast<double>(dW.size(0)));
}

// ---- CPU ----

template <typename A>
class AttentionHeads {
 public:
  AttentionHeads(const detail::HeadPasses<A>& passes, int64_t heads, int64_t num_queries)
      : passes_(passes), heads_(heads), num_queries_(num_queries) {}

  double scale() const { return 1 / std::sqrt(static_cast<double>(heads_)); }

  void value(int64_t block, const A* sums, int64_t count, A*, A*, double* partial) const {
    const int64_t lanes = passes_.lanes(), heads = passes_.heads_of(block);
    for (int64_t i = 0; i < count; ++i) {
      double sum = 0;
      for (int64_t q = 0; q < num_queries_; ++q, sums += lanes)
        for (int64_t h = 0; h < heads; ++h) sum += sums[h];
      partial[i] = sum;
    }
  }

  void weights(int64_t, const double* r, int64_t count, const A*, const A*, A* weights) const {
    for (int64_t i = 0; i < count; ++i)
      std::fill_n(weights + i * passes_.lanes(), passes_.lanes(), static_cast<A>(r[i] * scale()));
  }

 private:
  const detail::HeadPasses<A>& passes_;
  int64_t heads_, num_queries_;
};

detail::HeadProblem problem_of(const Tensor& X, const Tensor& W, const Tensor& U,
                               int64_t chunk_bytes) {
  const auto tokens = X.contiguous();
  return {tokens, tokens, W.contiguous(), U.contiguous(), /*rows_of_queries=*/true, chunk_bytes};
}

/// Phi in float64 and, where `weigh` is given, the gradients.
template <typename A, typename Weigh>
TwoTensors run(const Tensor& X, const Tensor& W, const Tensor& U, int64_t chunk_bytes, double* phi,
               const Weigh& weigh) {
  const auto problem = problem_of(X, W, U, chunk_bytes);
  detail::HeadPasses<A> passes(problem);
  AttentionHeads<A> heads(passes, W.size(0), X.size(1));
  passes.run(heads, phi, weigh);
  if constexpr (std::is_null_pointer_v<Weigh>)
    return {};
  else
    return {passes.weight_gradient(), passes.value_gradient()};
}

Tensor logits_meta(const Tensor& X, const Tensor& W, const Tensor& U, int64_t chunk_bytes) {
  check_model("mhgd_logits", X, W, U, chunk_bytes);
  return at::empty_symint({X.sym_size(0)}, X.options());
}

Tensor logits_cpu(const Tensor& X, const Tensor& W, const Tensor& U, int64_t chunk_bytes) {
  const auto out = logits_meta(X, W, U, chunk_bytes);
  const auto phi = at::empty({X.size(0)}, X.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), "mhgd_logits", [&] {
    run<scalar_t>(X, W, U, chunk_bytes, phi.mutable_data_ptr<double>(), nullptr);
  });
  return out.copy_(phi);
}

TwoTensors backward_meta(const Tensor& r, const Tensor& X, const Tensor& W, const Tensor& U,
                         int64_t chunk_bytes) {
  check_model("mhgd_logits", X, W, U, chunk_bytes);
  detail::check_like("mhgd_logits", "r", r, X, {X.sym_size(0)});
  return {at::empty_symint(W.sym_sizes(), W.options()),
          at::empty_symint(U.sym_sizes(), U.options())};
}

TwoTensors backward_cpu(const Tensor& r, const Tensor& X, const Tensor& W, const Tensor& U,
                        int64_t chunk_bytes) {
  check_model("mhgd_logits", X, W, U, chunk_bytes);
  detail::check_like("mhgd_logits", "r", r, X, {X.sym_size(0)});
  const auto weights = r.to(at::kDouble).contiguous();
  std::vector<double> phi(X.size(0));
  return AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), "mhgd_logits_backward", [&] {
    return run<scalar_t>(X, W, U, chunk_bytes, phi.data(),
                         [&](int64_t first, int64_t count, const double*, double* out) {
                           std::copy_n(weights.const_data_ptr<double>() + first, count, out);
                         });
  });
}

LossAndGradients loss_grad_cpu(const Tensor& X, const Tensor& y, const Tensor& W, const Tensor& U,
                               int64_t chunk_bytes) {
  check_model("mhgd_loss_grad", X, W, U, chunk_bytes);
  detail::check_like("mhgd_loss_grad", "y", y, X, {X.sym_size(0)});
  const int64_t n = X.size(0);
  const auto labels = y.to(at::kDouble).contiguous();
  const auto phi = at::empty({n}, labels.options());
  const double* const sign = labels.const_data_ptr<double>();
  double loss = 0;
  // l(z) = log(1 + exp(-z)) and -l'(z) = 1 / (1 + exp(z)), without overflow
  const auto weigh = [&](int64_t first, int64_t count, const double* outputs, double* r) {
    for (int64_t i = 0; i < count; ++i) {
      const double z = sign[first + i] * outputs[i], e = std::exp(-std::abs(z));
      loss += (std::max(-z, 0.0) + std::log1p(e)) / static_cast<double>(n);
      r[i] = -sign[first + i] * (z > 0 ? e : 1) / (1 + e) / static_cast<double>(n);
    }
  };
  auto [gW, gU] = AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), "mhgd_loss_grad", [&] {
    return run<scalar_t>(X, W, U, chunk_bytes, phi.mutable_data_ptr<double>(), weigh);
  });
  return {at::empty({}, labels.options()).fill_(loss), phi.to(X.scalar_type()), gW, gU};
}

TwoTensors features_meta(const Tensor& X, const Tensor& W, const Tensor& U) {
  check_model("mhgd_features", X, W, U);
  const std::vector<c10::SymInt> sizes = {X.sym_size(0), X.sym_size(1), W.sym_size(0),
                                          X.sym_size(2)};
  return {at::empty_symint(sizes, X.options()), at::empty_symint(sizes, X.options())};
}

/// Element [q, e] of a head's lane in a block to [q, head, e] of a sample.
template <typename A>
void scatter_heads(const A* block, int64_t lanes, int64_t heads, int64_t num_queries, int64_t d,
                   int64_t H, A* out) {
  for (int64_t q = 0; q < num_queries; ++q)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t e = 0; e < d; ++e) out[(q * H + h) * d + e] = block[(q * d + e) * lanes + h];
}

TwoTensors features_cpu(const Tensor& X, const Tensor& W, const Tensor& U) {
  const auto [Z, G] = features_meta(X, W, U);
  const auto problem = problem_of(X, W, U, kDefaultChunkBytes);
  const int64_t T = X.size(1), d = X.size(2), H = W.size(0);
  AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), "mhgd_features", [&, &Z = Z, &G = G] {
    const detail::HeadPasses<scalar_t> passes(problem);
    const int64_t lanes = passes.lanes();
    auto* const z_out = Z.mutable_data_ptr<scalar_t>();
    auto* const g_out = G.mutable_data_ptr<scalar_t>();
    passes.features(
        [&](int64_t block, int64_t i, const scalar_t*, const scalar_t* z, const scalar_t* g) {
          const int64_t at = i * T * H * d + block * lanes * d, heads = passes.heads_of(block);
          scatter_heads(z, lanes, heads, T, d, H, z_out + at);
          scatter_heads(g, lanes, heads, T, d, H, g_out + at);
        });
  });
  return {Z, G};
}

// ---- Autograd ----

using LogitsSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t);
using BackwardSignature = TwoTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                     int64_t);

const auto& logits_op() {
  static const auto op = detail::op_handle<LogitsSignature>("kktorch::mhgd_logits");
  return op;
}
const auto& backward_op() {
  static const auto op = detail::op_handle<BackwardSignature>("kktorch::_mhgd_logits_backward");
  return op;
}

struct MhgdLogits : torch::autograd::Function<MhgdLogits> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& X, const Tensor& W,
                        const Tensor& U, int64_t chunk_bytes) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({X, W, U});
    ctx->saved_data["chunk_bytes"] = chunk_bytes;
    return logits_op().call(X, W, U, chunk_bytes);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto t = ctx->get_saved_variables();
    const auto [gW, gU] =
        backward_op().call(grads[0], t[0], t[1], t[2], ctx->saved_data["chunk_bytes"].toInt());
    return {Tensor(), gW, gU, Tensor()};
  }
};

Tensor logits_autograd(const Tensor& X, const Tensor& W, const Tensor& U, int64_t chunk_bytes) {
  detail::refuse_forward_mode("mhgd_logits", {X, W, U});
  detail::check_no_gradient("mhgd_logits", {X});
  return MhgdLogits::apply(X, W, U, chunk_bytes);
}

}  // namespace

Tensor mhgd_logits(const Tensor& X, const Tensor& W, const Tensor& U, int64_t chunk_bytes) {
  return logits_op().call(X, W, U, chunk_bytes);
}

Tensor mhgd_logits_ref(const Tensor& X, const Tensor& W, const Tensor& U) {
  return logits_ref(X, W, U);
}

LossAndGradients mhgd_loss_grad(const Tensor& X, const Tensor& y, const Tensor& W, const Tensor& U,
                                int64_t chunk_bytes) {
  static const auto op = detail::op_handle<decltype(loss_grad_cpu)>("kktorch::mhgd_loss_grad");
  return op.call(X, y, W, U, chunk_bytes);
}

TwoTensors mhgd_features(const Tensor& X, const Tensor& W, const Tensor& U) {
  static const auto op = detail::op_handle<decltype(features_cpu)>("kktorch::mhgd_features");
  return op.call(X, W, U);
}

Tensor mhgd_jvp(const Tensor& X, const Tensor& Z, const Tensor& G, const Tensor& dW,
                const Tensor& dU) {
  static const auto op = detail::op_handle<decltype(jvp)>("kktorch::mhgd_jvp");
  return op.call(X, Z, G, dW, dU);
}

int64_t mhgd_workspace_bytes(const Tensor& X, const Tensor& W, const Tensor& U,
                             int64_t chunk_bytes) {
  check_model("mhgd_workspace_bytes", X, W, U, chunk_bytes);
  return AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), "mhgd_workspace_bytes", [&] {
    return detail::head_workspace_bytes<scalar_t>(problem_of(X, W, U, chunk_bytes));
  });
}

TwoTensors detail::mhgd_logits_backward(const Tensor& r, const Tensor& X, const Tensor& W,
                                        const Tensor& U, int64_t chunk_bytes) {
  return backward_op().call(r, X, W, U, chunk_bytes);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  const auto define = [&](const std::string& schema) { m.def(schema.c_str(), tags); };
  const std::string model = "Tensor X, Tensor W, Tensor U",
                    option = ", *, int chunk_bytes=268435456";
  define("mhgd_logits(" + model + option + ") -> Tensor");
  define("mhgd_logits_ref(" + model + ") -> Tensor");
  define("_mhgd_logits_backward(Tensor r, " + model + option + ") -> (Tensor gW, Tensor gU)");
  define("mhgd_loss_grad(Tensor X, Tensor y, Tensor W, Tensor U" + option +
         ") -> (Tensor loss, Tensor phi, Tensor gW, Tensor gU)");
  define("mhgd_features(" + model + ") -> (Tensor Z, Tensor G)");
  define("mhgd_jvp(Tensor X, Tensor Z, Tensor G, Tensor dW, Tensor dU) -> Tensor");
}
TORCH_LIBRARY_IMPL(kktorch, CompositeImplicitAutograd, m) {
  m.impl("mhgd_logits_ref", &logits_ref);
}
TORCH_LIBRARY_IMPL(kktorch, CPU, m) {
  m.impl("mhgd_logits", &logits_cpu);
  m.impl("_mhgd_logits_backward", &backward_cpu);
  m.impl("mhgd_loss_grad", &loss_grad_cpu);
  m.impl("mhgd_features", &features_cpu);
  m.impl("mhgd_jvp", &jvp);
}
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) {
  m.impl("mhgd_logits", &logits_aten);
  m.impl("_mhgd_logits_backward", &backward_aten);
  m.impl("mhgd_loss_grad", &loss_grad_aten);
  m.impl("mhgd_features", &features_aten);
  m.impl("mhgd_jvp", &jvp);
}
TORCH_LIBRARY_IMPL(kktorch, Meta, m) {
  m.impl("mhgd_logits", &logits_meta);
  m.impl("_mhgd_logits_backward", &backward_meta);
  m.impl("mhgd_loss_grad", &loss_grad_meta);
  m.impl("mhgd_features", &features_meta);
  m.impl("mhgd_jvp", &jvp_meta);
}
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  m.impl("mhgd_logits", &logits_autograd);
  m.impl("_mhgd_logits_backward",
         torch::CppFunction::makeFromBoxedFunction<&detail::refuse_double_backward>());
  for (const auto* op : {"mhgd_loss_grad", "mhgd_features", "mhgd_jvp"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&detail::refuse_differentiation>());
}

}  // namespace kktorch
