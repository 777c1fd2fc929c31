#include "ops/shk.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "ops/common/registration.h"
#include "ops/dynamics/activation.h"
#include "ops/dynamics/checks.h"
#include "ops/dynamics/heads.h"

namespace kktorch {
namespace {

using at::Tensor;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;
using LossAndGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Model {
  const Tensor &X, &q, &W, &U, &c;
  std::string_view act;
};

// ---- checks ----

void check_heads(std::string_view op, const Tensor& X, const Tensor& q, const Tensor& W,
                 const Tensor& U, std::string_view act) {
  detail::check_single_or_double(op, "X", X);
  TORCH_CHECK(X.dim() == 3 && U.dim() == 2, op, ": expected X [n, T, d] and U [m, d], but got ",
              X.sym_sizes(), " and ", U.sym_sizes());
  const auto n = X.sym_size(0), T = X.sym_size(1), d = X.sym_size(2), m = U.sym_size(0);
  TORCH_CHECK_VALUE(n >= 1 && T >= 1 && d >= 1 && m >= 1, op,
                    ": expected n, T, d, m >= 1, but got ", n, ", ", T, ", ", d, ", ", m);
  detail::check_like(op, "q", q, X, {n, d});
  detail::check_like(op, "W", W, X, {m, d, d});
  detail::check_like(op, "U", U, X, {m, d});
  detail::activation_of(op, act);
}

void check_model(std::string_view op, const Model& a, int64_t chunk_bytes) {
  check_heads(op, a.X, a.q, a.W, a.U, a.act);
  detail::check_like(op, "c", a.c, a.X, {a.U.sym_size(0)});
  TORCH_CHECK_VALUE(chunk_bytes >= 1, op, ": expected chunk_bytes >= 1, but got ", chunk_bytes);
}

void check_per_sample(std::string_view op, const char* name, const Tensor& t, const Tensor& X) {
  detail::check_like(op, name, t, X, {X.sym_size(0)});
}

// ---- ATen ----

Tensor attention_ref(const Tensor& X, const Tensor& q, const Tensor& W) {
  const auto m = W.sym_size(0), d = W.sym_size(1);
  const auto V = at::matmul(q, W.reshape_symint({m * d, d}).t())
                     .reshape_symint({X.sym_size(0), m, d});  // [n, m, d]
  return at::softmax(at::bmm(V, X.transpose(1, 2)), -1);      // [n, m, T]
}

ThreeTensors features_aten(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                           std::string_view act) {
  check_heads("shk_features", X, q, W, U, act);
  const auto P = attention_ref(X, q, W), A = at::bmm(P, X);
  const auto s = (A * U).sum(-1);
  const auto h = detail::activate(s, act), s1 = detail::slope(h, act).unsqueeze(-1);
  const auto Y = at::matmul(U, X.transpose(1, 2));
  const auto G = at::bmm(P * Y, X) - s.unsqueeze(-1) * A;
  return {h, s1 * A, s1 * G};
}

int64_t samples_of_chunk(const Tensor& X, const Tensor& U, int64_t chunk_bytes) {
  const auto bytes = U.size(0) * (2 * X.size(1) + 3 * X.size(2) + 4) * X.itemsize();
  return std::max<int64_t>(1, chunk_bytes / bytes);
}

Tensor output_aten(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                   const Tensor& c, std::string_view act, int64_t chunk_bytes) {
  check_model("shk_output", {X, q, W, U, c, act}, chunk_bytes);
  const int64_t step = samples_of_chunk(X, U, chunk_bytes);
  std::vector<Tensor> parts;
  for (int64_t i = 0; i < X.size(0); i += step) {
    const int64_t count = std::min(step, X.size(0) - i);
    parts.push_back(shk_output_ref(X.narrow(0, i, count), q.narrow(0, i, count), W, U, c, act));
  }
  return at::cat(parts);
}

ThreeTensors backward_aten(const Tensor& r, const Tensor& X, const Tensor& q, const Tensor& W,
                           const Tensor& U, const Tensor& c, std::string_view act,
                           int64_t chunk_bytes) {
  check_model("shk_output", {X, q, W, U, c, act}, chunk_bytes);
  check_per_sample("shk_output", "r", r, X);
  const double scale = 1 / std::sqrt(static_cast<double>(U.size(0)));
  const int64_t step = samples_of_chunk(X, U, chunk_bytes);
  Tensor gW = at::zeros_like(W), gU = at::zeros_like(U), gc = at::zeros_like(c);
  for (int64_t i = 0; i < X.size(0); i += step) {
    const int64_t count = std::min(step, X.size(0) - i);
    const auto queries = q.narrow(0, i, count), weights = r.narrow(0, i, count) * scale;
    const auto [h, B, G] = features_aten(X.narrow(0, i, count), queries, W, U, act);
    const auto k = weights.unsqueeze(1) * c;  // [n, m]
    gc += at::matmul(weights, h);
    gU += (k.unsqueeze(-1) * B).sum(0);
    gW += at::matmul((k.unsqueeze(-1) * G).flatten(1).t(), queries).view_as(W);
  }
  return {gW, gU, gc};
}

LossAndGradients loss_grad_aten(const Tensor& X, const Tensor& q, const Tensor& y, const Tensor& W,
                                const Tensor& U, const Tensor& c, std::string_view act,
                                int64_t chunk_bytes) {
  check_per_sample("shk_loss_grad", "y", y, X);
  const auto f = output_aten(X, q, W, U, c, act, chunk_bytes), residual = f - y;
  const auto r = residual * (2.0 / static_cast<double>(X.size(0)));
  auto [gW, gU, gc] = backward_aten(r, X, q, W, U, c, act, chunk_bytes);
  return {residual.to(at::kDouble).square().mean(), f, gW, gU, gc};
}

// ---- CPU ----

template <typename A>
class ShallowHeads {
 public:
  ShallowHeads(const detail::HeadPasses<A>& passes, const Tensor& c, csrc::Activation activation)
      : passes_(passes), c_(c.contiguous()), activation_(activation) {
    gc_ = at::zeros_like(c_);
  }

  double scale() const { return 1 / std::sqrt(static_cast<double>(c_.size(0))); }
  const Tensor& gradient() const { return gc_; }

  void value(int64_t block, const A* sums, int64_t count, A* values, A* slopes,
             double* partial) const {
    const int64_t lanes = passes_.lanes(), heads = passes_.heads_of(block);
    const A* const c = c_.template const_data_ptr<A>() + block * lanes;
    csrc::head_kernels<A>().activate(activation_, sums, count * lanes, values, slopes);
    for (int64_t i = 0; i < count; ++i) {
      A sum = 0;
      for (int64_t h = 0; h < heads; ++h) sum += c[h] * values[i * lanes + h];
      partial[i] = sum;
    }
  }

  void weights(int64_t block, const double* r, int64_t count, const A* values, const A* slopes,
               A* weights) {
    const int64_t lanes = passes_.lanes(), heads = passes_.heads_of(block);
    const A* const c = c_.template const_data_ptr<A>() + block * lanes;
    A* const gc = gc_.template mutable_data_ptr<A>() + block * lanes;
    for (int64_t i = 0; i < count; ++i) {
      const A weight = static_cast<A>(r[i] * scale());
      for (int64_t h = 0; h < heads; ++h) {
        gc[h] += weight * values[i * lanes + h];
        weights[i * lanes + h] = weight * c[h] * slopes[i * lanes + h];
      }
      std::fill(weights + i * lanes + heads, weights + (i + 1) * lanes, A(0));
    }
  }

 private:
  const detail::HeadPasses<A>& passes_;
  Tensor c_, gc_;
  csrc::Activation activation_;
};

detail::HeadProblem problem_of(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                               int64_t chunk_bytes) {
  return {X.contiguous(),
          q.contiguous(),
          W.contiguous(),
          U.contiguous().unsqueeze(1),
          /*rows_of_queries=*/false,
          chunk_bytes};
}

/// f in float64 and, where `weigh` is given, the gradients.
template <typename A, typename Weigh>
ThreeTensors run(const Model& a, int64_t chunk_bytes, double* f, const Weigh& weigh) {
  const auto problem = problem_of(a.X, a.q, a.W, a.U, chunk_bytes);
  detail::HeadPasses<A> passes(problem);
  ShallowHeads<A> heads(passes, a.c, detail::activation_of("shk_output", a.act));
  passes.run(heads, f, weigh);
  if constexpr (std::is_null_pointer_v<Weigh>)
    return {};
  else
    return {passes.weight_gradient(), passes.value_gradient().squeeze(1), heads.gradient()};
}

Tensor output_meta(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                   const Tensor& c, std::string_view act, int64_t chunk_bytes) {
  check_model("shk_output", {X, q, W, U, c, act}, chunk_bytes);
  return at::empty_symint({X.sym_size(0)}, X.options());
}

Tensor output_cpu(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                  const Tensor& c, std::string_view act, int64_t chunk_bytes) {
  const auto out = output_meta(X, q, W, U, c, act, chunk_bytes);
  const auto f = at::empty({X.size(0)}, X.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), "shk_output", [&] {
    run<scalar_t>({X, q, W, U, c, act}, chunk_bytes, f.mutable_data_ptr<double>(), nullptr);
  });
  return out.copy_(f);
}

Tensor empty_like_contiguous(const Tensor& t) {
  return at::empty_symint(t.sym_sizes(), t.options());
}

ThreeTensors backward_meta(const Tensor& r, const Tensor& X, const Tensor& q, const Tensor& W,
                           const Tensor& U, const Tensor& c, std::string_view act,
                           int64_t chunk_bytes) {
  check_model("shk_output", {X, q, W, U, c, act}, chunk_bytes);
  check_per_sample("shk_output", "r", r, X);
  return {empty_like_contiguous(W), empty_like_contiguous(U), empty_like_contiguous(c)};
}

ThreeTensors backward_cpu(const Tensor& r, const Tensor& X, const Tensor& q, const Tensor& W,
                          const Tensor& U, const Tensor& c, std::string_view act,
                          int64_t chunk_bytes) {
  check_model("shk_output", {X, q, W, U, c, act}, chunk_bytes);
  check_per_sample("shk_output", "r", r, X);
  const auto weights = r.to(at::kDouble).contiguous();
  std::vector<double> f(X.size(0));
  return AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), "shk_output_backward", [&] {
    return run<scalar_t>({X, q, W, U, c, act}, chunk_bytes, f.data(),
                         [&](int64_t first, int64_t count, const double*, double* out) {
                           std::copy_n(weights.const_data_ptr<double>() + first, count, out);
                         });
  });
}

LossAndGradients loss_grad_meta(const Tensor& X, const Tensor& q, const Tensor& y, const Tensor& W,
                                const Tensor& U, const Tensor& c, std::string_view act,
                                int64_t chunk_bytes) {
  check_model("shk_loss_grad", {X, q, W, U, c, act}, chunk_bytes);
  check_per_sample("shk_loss_grad", "y", y, X);
  return {at::empty({}, X.options().dtype(at::kDouble)),
          at::empty_symint({X.sym_size(0)}, X.options()), empty_like_contiguous(W),
          empty_like_contiguous(U), empty_like_contiguous(c)};
}

LossAndGradients loss_grad_cpu(const Tensor& X, const Tensor& q, const Tensor& y, const Tensor& W,
                               const Tensor& U, const Tensor& c, std::string_view act,
                               int64_t chunk_bytes) {
  check_model("shk_loss_grad", {X, q, W, U, c, act}, chunk_bytes);
  check_per_sample("shk_loss_grad", "y", y, X);
  const int64_t n = X.size(0);
  const auto labels = y.to(at::kDouble).contiguous();
  const auto f = at::empty({n}, labels.options());
  const double* const target = labels.const_data_ptr<double>();
  double loss = 0;
  const auto weigh = [&](int64_t first, int64_t count, const double* outputs, double* r) {
    for (int64_t i = 0; i < count; ++i) {
      const double residual = outputs[i] - target[first + i];
      loss += residual * residual / static_cast<double>(n);
      r[i] = 2 * residual / static_cast<double>(n);
    }
  };
  auto [gW, gU, gc] = AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), "shk_loss_grad", [&] {
    return run<scalar_t>({X, q, W, U, c, act}, chunk_bytes, f.mutable_data_ptr<double>(), weigh);
  });
  return {at::empty({}, labels.options()).fill_(loss), f.to(X.scalar_type()), gW, gU, gc};
}

ThreeTensors features_meta(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                           std::string_view act) {
  check_heads("shk_features", X, q, W, U, act);
  const auto n = X.sym_size(0), m = U.sym_size(0), d = X.sym_size(2);
  const auto empty = [&](c10::SymIntArrayRef sizes) {
    return at::empty_symint(sizes, X.options());
  };
  return {empty({n, m}), empty({n, m, d}), empty({n, m, d})};
}

/// One sample of a block to the tensors: h, sigma' z and sigma' g.
template <typename A>
struct FeatureRows {
  A *h, *B, *G;
  int64_t m, d;

  void store(int64_t sample, int64_t head, A value, A slope, const A* z, const A* g,
             int64_t lanes) const {
    const int64_t at = sample * m + head;
    h[at] = value;
    for (int64_t e = 0; e < d; ++e) {
      B[at * d + e] = slope * z[e * lanes];
      G[at * d + e] = slope * g[e * lanes];
    }
  }
};

ThreeTensors features_cpu(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                          std::string_view act) {
  const auto [h, B, G] = features_meta(X, q, W, U, act);
  const auto activation = detail::activation_of("shk_features", act);
  const auto problem = problem_of(X, q, W, U, kDefaultChunkBytes);
  AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), "shk_features", [&, &h = h, &B = B, &G = G] {
    const detail::HeadPasses<scalar_t> passes(problem);
    const int64_t lanes = passes.lanes();
    const FeatureRows<scalar_t> rows{h.mutable_data_ptr<scalar_t>(), B.mutable_data_ptr<scalar_t>(),
                                     G.mutable_data_ptr<scalar_t>(), U.size(0), U.size(1)};
    passes.features(
        [&](int64_t block, int64_t i, scalar_t* sums, const scalar_t* z, const scalar_t* g) {
          scalar_t slopes[64 / sizeof(scalar_t)];
          csrc::head_kernels<scalar_t>().activate(activation, sums, lanes, sums, slopes);
          for (int64_t j = 0; j < passes.heads_of(block); ++j)
            rows.store(i, block * lanes + j, sums[j], slopes[j], z + j, g + j, lanes);
        });
  });
  return {h, B, G};
}

// ---- Autograd ----

using OutputSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                               const Tensor&, std::string_view, int64_t);
using BackwardSignature = ThreeTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                       const Tensor&, const Tensor&, std::string_view, int64_t);

const auto& output_op() {
  static const auto op = detail::op_handle<OutputSignature>("kktorch::shk_output");
  return op;
}
const auto& backward_op() {
  static const auto op = detail::op_handle<BackwardSignature>("kktorch::_shk_output_backward");
  return op;
}

struct ShkOutput : torch::autograd::Function<ShkOutput> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& X, const Tensor& q,
                        const Tensor& W, const Tensor& U, const Tensor& c, std::string_view act,
                        int64_t chunk_bytes) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({X, q, W, U, c});
    ctx->saved_data["act"] = std::string(act);
    ctx->saved_data["chunk_bytes"] = chunk_bytes;
    return output_op().call(X, q, W, U, c, act, chunk_bytes);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto t = ctx->get_saved_variables();
    const auto [gW, gU, gc] = backward_op().call(grads[0], t[0], t[1], t[2], t[3], t[4],
                                                 ctx->saved_data["act"].toStringRef(),
                                                 ctx->saved_data["chunk_bytes"].toInt());
    return {Tensor(), Tensor(), gW, gU, gc, Tensor(), Tensor()};
  }
};

Tensor output_autograd(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                       const Tensor& c, std::string_view act, int64_t chunk_bytes) {
  detail::refuse_forward_mode("shk_output", {X, q, W, U, c});
  detail::check_no_gradient("shk_output", {X, q});
  return ShkOutput::apply(X, q, W, U, c, act, chunk_bytes);
}

Tensor output_ref(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                  const Tensor& c, std::string_view act) {
  check_model("shk_output_ref", {X, q, W, U, c, act}, 1);
  const auto s = (at::bmm(attention_ref(X, q, W), X) * U).sum(-1);
  return (detail::activate(s, act) * c).sum(1) / at::ones_like(c).sum().sqrt();
}

}  // namespace

Tensor shk_output(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                  const Tensor& c, std::string_view act, int64_t chunk_bytes) {
  return output_op().call(X, q, W, U, c, act, chunk_bytes);
}

Tensor shk_output_ref(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                      const Tensor& c, std::string_view act) {
  return output_ref(X, q, W, U, c, act);
}

LossAndGradients shk_loss_grad(const Tensor& X, const Tensor& q, const Tensor& y, const Tensor& W,
                               const Tensor& U, const Tensor& c, std::string_view act,
                               int64_t chunk_bytes) {
  static const auto op = detail::op_handle<decltype(loss_grad_cpu)>("kktorch::shk_loss_grad");
  return op.call(X, q, y, W, U, c, act, chunk_bytes);
}

ThreeTensors shk_features(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                          std::string_view act) {
  static const auto op = detail::op_handle<decltype(features_cpu)>("kktorch::shk_features");
  return op.call(X, q, W, U, act);
}

int64_t shk_workspace_bytes(const Tensor& X, const Tensor& q, const Tensor& W, const Tensor& U,
                            int64_t chunk_bytes) {
  check_heads("shk_workspace_bytes", X, q, W, U, "tanh");
  return AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), "shk_workspace_bytes", [&] {
    return detail::head_workspace_bytes<scalar_t>(problem_of(X, q, W, U, chunk_bytes));
  });
}

ThreeTensors detail::shk_output_backward(const Tensor& r, const Tensor& X, const Tensor& q,
                                         const Tensor& W, const Tensor& U, const Tensor& c,
                                         std::string_view act, int64_t chunk_bytes) {
  return backward_op().call(r, X, q, W, U, c, act, chunk_bytes);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  const auto define = [&](const std::string& schema) { m.def(schema.c_str(), tags); };
  const std::string model = "Tensor X, Tensor q, Tensor W, Tensor U, Tensor c, *, ";
  const std::string options = "str act=\"tanh\", int chunk_bytes=268435456) -> ";
  define("shk_output(" + model + options + "Tensor");
  define("shk_output_ref(" + model + "str act=\"tanh\") -> Tensor");
  define("_shk_output_backward(Tensor r, " + model + options + "(Tensor gW, Tensor gU, Tensor gc)");
  define("shk_loss_grad(Tensor X, Tensor q, Tensor y, Tensor W, Tensor U, Tensor c, *, " + options +
         "(Tensor loss, Tensor f, Tensor gW, Tensor gU, Tensor gc)");
  m.def(
      "shk_features(Tensor X, Tensor q, Tensor W, Tensor U, *, str act=\"tanh\") -> "
      "(Tensor h, Tensor B, Tensor G1)",
      tags);
}
TORCH_LIBRARY_IMPL(kktorch, CompositeImplicitAutograd, m) { m.impl("shk_output_ref", &output_ref); }
TORCH_LIBRARY_IMPL(kktorch, CPU, m) {
  m.impl("shk_output", &output_cpu);
  m.impl("_shk_output_backward", &backward_cpu);
  m.impl("shk_loss_grad", &loss_grad_cpu);
  m.impl("shk_features", &features_cpu);
}
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) {
  m.impl("shk_output", &output_aten);
  m.impl("_shk_output_backward", &backward_aten);
  m.impl("shk_loss_grad", &loss_grad_aten);
  m.impl("shk_features", &features_aten);
}
TORCH_LIBRARY_IMPL(kktorch, Meta, m) {
  m.impl("shk_output", &output_meta);
  m.impl("_shk_output_backward", &backward_meta);
  m.impl("shk_loss_grad", &loss_grad_meta);
  m.impl("shk_features", &features_meta);
}
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  m.impl("shk_output", &output_autograd);
  m.impl("_shk_output_backward",
         torch::CppFunction::makeFromBoxedFunction<&detail::refuse_double_backward>());
  m.impl("shk_loss_grad",
         torch::CppFunction::makeFromBoxedFunction<&detail::refuse_differentiation>());
  m.impl("shk_features",
         torch::CppFunction::makeFromBoxedFunction<&detail::refuse_differentiation>());
}

}  // namespace kktorch
