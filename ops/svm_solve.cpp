#include "ops/svm_solve.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "csrc/svm/finite_part.h"
#include "csrc/svm/operators.h"
#include "ops/common/registration.h"
#include "ops/svm/token_rows.h"

namespace kktorch {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Solved = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // w, lam, nu, info

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr std::array<std::string_view, 10> kMethods = {"",
                                                       "oracle",
                                                       "dcd",
                                                       "dcd+polish",
                                                       "dcd+polish+finish",
                                                       "pdhg",
                                                       "dcd+interior",
                                                       "dcd+interior+polish",
                                                       "dcd+interior+polish+finish",
                                                       "farkas"};
constexpr std::array<std::string_view, 4> kReasons = {"", "zero_pair", "interrupted", "time_limit"};

/// Solves that are running end when it changes.
std::atomic<int64_t> cancellations{0};

template <size_t n>
double code_of(const std::array<std::string_view, n>& names, std::string_view name) {
  return static_cast<double>(std::find(names.begin(), names.end(), name) - names.begin());
}

// ---- checks ----

void check_numbers(std::string_view op, std::string_view name, const Tensor& t,
                   c10::SymIntArrayRef sizes, const Tensor& x) {
  TORCH_CHECK(t.sym_sizes() == sizes && t.is_floating_point() && t.device() == x.device(), op,
              ": expected ", name, " floating ", sizes, " on ", x.device(), ", but got ",
              t.scalar_type(), " ", t.sym_sizes(), " on ", t.device());
}

/// The tensors of one problem: everything that shapes and dtypes tell.
struct Inputs {
  std::string_view op;
  const Tensor &x, &z, &row_ptr, &selection;
  const OptionalTensor& tok;

  detail::TokenSetTensors sets() const { return {op, x, row_ptr, tok}; }
  c10::SymInt nnz() const { return sets().entries(); }
  bool several() const { return selection.scalar_type() == at::kBool; }

  void check() const {
    detail::check_token_sets(sets());
    TORCH_CHECK(x.scalar_type() == at::kDouble || x.scalar_type() == at::kFloat, op,
                ": expected x float32 or float64, but got ", x.scalar_type());
    TORCH_CHECK(z.dim() == 2 && z.sym_size(0) == sets().queries() &&
                    z.scalar_type() == x.scalar_type() && z.device() == x.device(),
                op, ": expected z ", x.scalar_type(), " [", sets().queries(), ", dz] on ",
                x.device(), ", but got ", z.scalar_type(), " ", z.sym_sizes(), " on ", z.device());
    TORCH_CHECK(x.sym_size(1) > 0 && z.sym_size(1) > 0 && sets().queries() > 0, op,
                ": expected at least one query, dx >= 1 and dz >= 1, but got x ", x.sym_sizes(),
                " and z ", z.sym_sizes());
    if (!several()) return detail::check_selection(sets(), selection);
    TORCH_CHECK(
        selection.dim() == 1 && selection.sym_size(0) == nnz() && selection.device() == x.device(),
        op, ": expected the selection as int64 [", sets().queries(), "] or bool [", nnz(), "] on ",
        x.device(), ", but got bool ", selection.sym_sizes(), " on ", selection.device());
  }
};

/// `t` is float64 and contiguous.
void check_finite(std::string_view op, std::string_view name, const Tensor& t) {
  const double* const values = t.const_data_ptr<double>();
  const auto finite = [](double value) { return std::isfinite(value); };
  int64_t flat = std::find_if_not(values, values + t.numel(), finite) - values;
  if (flat == t.numel()) return;
  std::vector<int64_t> index(t.dim());
  for (int64_t d = t.dim() - 1; d >= 0; --d) {
    index[d] = flat % t.size(d);
    flat /= t.size(d);
  }
  TORCH_CHECK(false, op, ": expected finite ", name, ", but got NaN or Inf at ",
              at::IntArrayRef(index));
}

/// What a solver looks into: float64 copies where needed, and the pairs.
struct Problem {
  Tensor x, z, row_ptr;
  OptionalTensor tok;
  csrc::TokenSetsView<double> view;
  csrc::Pairs pairs;
};

Tensor as_double(const Tensor& t) { return t.detach().to(at::kDouble).contiguous(); }

/// Checks what only the numbers tell. The view stays valid while the Problem is alive.
Problem read(const Inputs& in) {
  detail::check_token_values(in.sets(), in.several() ? std::nullopt : OptionalTensor(in.selection));
  Problem p{as_double(in.x), as_double(in.z), in.row_ptr.contiguous(), std::nullopt, {}, {}};
  check_finite(in.op, "x", p.x);
  check_finite(in.op, "z", p.z);
  if (in.tok) p.tok = in.tok->contiguous();
  p.view = detail::token_sets_view<double>(p.x, p.row_ptr, p.tok);
  p.view.z = p.z.const_data_ptr<double>();
  p.view.dz = p.z.size(1);
  const auto selection = in.selection.contiguous();
  if (!in.several()) {
    p.pairs = csrc::pairs_of_alpha(p.view.row_ptr, p.view.Q, selection.const_data_ptr<int64_t>());
    return p;
  }
  p.pairs = csrc::pairs_of_selection(p.view.row_ptr, p.view.Q, selection.const_data_ptr<bool>());
  for (int64_t q = 0; q < p.view.Q; ++q)
    TORCH_CHECK(p.pairs.anchor[q] >= 0, in.op,
                ": expected a selected token in every set, but got none for query ", q);
  return p;
}

/// [entries] float64, its values at the pairs.
std::vector<double> at_pairs(const csrc::EntryList& list, const Tensor& entries) {
  const auto values = as_double(entries);
  const double* data = values.const_data_ptr<double>();
  std::vector<double> result;
  for (const int64_t entry : list.entry) result.push_back(data[entry]);
  return result;
}

// ---- svm_solve ----

struct Solve {  // the arguments of svm_solve
  const Tensor &x, &z, &row_ptr, &selection;
  const OptionalTensor &tok, &h, &lam0;
  std::string_view norm, method;
  std::optional<double> tol;
  int64_t max_epochs, max_iters, inner, check_every, polish_max;
  double kappa_max, tol_sv;
  int64_t seed;
  bool drop_zero_pairs;
  std::optional<double> time_limit;

  Inputs inputs() const { return {"svm_solve", x, z, row_ptr, selection, tok}; }
};
using SolveSignature = Solved(const Tensor& x, const Tensor& z, const Tensor& row_ptr,
                              const Tensor& selection, const OptionalTensor& tok,
                              const OptionalTensor& h, const OptionalTensor& lam0,
                              std::string_view norm, std::string_view method,
                              std::optional<double> tol, int64_t max_epochs, int64_t max_iters,
                              int64_t inner, int64_t check_every, int64_t polish_max,
                              double kappa_max, double tol_sv, int64_t seed, bool drop_zero_pairs,
                              std::optional<double> time_limit);

csrc::SvmNorm parse_norm(std::string_view op, std::string_view norm) {
  TORCH_CHECK_VALUE(norm == "frobenius" || norm == "nuclear", op,
                    ": expected norm 'frobenius' or 'nuclear', but got '", norm, "'");
  return norm == "nuclear" ? csrc::SvmNorm::kNuclear : csrc::SvmNorm::kFrobenius;
}

csrc::SvmMethod parse_method(std::string_view method) {
  using csrc::SvmMethod;
  if (method == "oracle") return SvmMethod::kOracle;
  if (method == "dcd") return SvmMethod::kDcd;
  if (method == "pdhg") return SvmMethod::kPdhg;
  TORCH_CHECK_VALUE(method == "auto",
                    "svm_solve: expected method 'auto', 'oracle', 'dcd' or 'pdhg', but got '",
                    method, "'");
  return SvmMethod::kAuto;
}

csrc::SvmSettings settings_of(const Solve& a) {
  csrc::SvmSettings s;
  s.norm = parse_norm("svm_solve", a.norm);
  s.method = parse_method(a.method);
  s.tol = a.tol;
  s.max_epochs = a.max_epochs;
  s.max_iters = a.max_iters;
  s.inner = a.inner;
  s.check_every = a.check_every;
  s.polish_max = a.polish_max;
  s.kappa_max = a.kappa_max;
  s.tol_sv = a.tol_sv;
  s.seed = static_cast<uint64_t>(a.seed);
  s.drop_zero_pairs = a.drop_zero_pairs;
  s.time_limit = a.time_limit.value_or(std::numeric_limits<double>::infinity());
  return s;
}

/// @return what the settings mean.
csrc::SvmSettings check(const Solve& a) {
  const auto in = a.inputs();
  in.check();
  if (a.h) check_numbers(in.op, "h", *a.h, {in.nnz()}, a.x);
  if (a.lam0) check_numbers(in.op, "lam0", *a.lam0, {in.nnz()}, a.x);
  return settings_of(a);
}

Solved solve_meta(const Solve& a) {
  check(a);
  const auto nnz = a.inputs().nnz();
  const auto options = a.x.options().dtype(at::kDouble);
  return {at::empty_symint({a.x.sym_size(1), a.z.sym_size(1)}, options),
          at::empty_symint({nnz}, options), at::empty_symint({nnz}, options),
          at::empty({detail::kSvmInfoCount}, options)};
}

/// The same numbers as a Certificate.
void write_certificate(const csrc::Certificate& c, double* info) {
  info[detail::kSvmLower] = c.lower;
  info[detail::kSvmUpper] = c.upper;
  info[detail::kSvmGap] = c.gap;
  info[detail::kSvmCosine] = c.cosine;
  info[detail::kSvmKappa] = c.kappa;
  info[detail::kSvmRho] = c.rho;
  info[detail::kSvmMinMargin] = c.min_margin;
  info[detail::kSvmNormOfW] = c.norm;
  info[detail::kSvmDualNorm] = c.dual_norm;
  info[detail::kSvmSumLam] = c.sum_lam;
  info[detail::kSvmMarginError] = c.margin_error;
  info[detail::kSvmRank] = static_cast<double>(c.rank);
  info[detail::kSvmMu] = static_cast<double>(c.mu);
}

Tensor to_tensor(const std::vector<double>& values, at::IntArrayRef sizes) {
  auto t = at::empty(sizes, at::kDouble);
  std::copy(values.begin(), values.end(), t.mutable_data_ptr<double>());
  return t;
}

SvmSolution to_solution(const Problem& p, const csrc::SvmResult& r) {
  const int64_t nnz = p.view.nnz();
  const auto entries = [&](const std::vector<double>& values) {
    return values.empty() ? at::zeros({nnz}, at::kDouble) : to_tensor(values, {nnz});
  };
  return {.status = r.status,
          .w = r.w.empty() ? Tensor() : to_tensor(r.w, {p.view.dx, p.view.dz}),
          .lam = entries(r.lam),
          .nu = entries(r.nu),
          .certificate = r.certificate,
          .support_resolved = r.support_resolved,
          .epochs = r.epochs,
          .iterations = r.iterations,
          .zero_pairs = r.zero_pairs,
          .method = r.method,
          .reason = r.reason};
}

const double* entries_of(std::string_view name, const OptionalTensor& values, Tensor& copy) {
  if (!values) return nullptr;
  copy = as_double(*values);
  check_finite("svm_solve", name, copy);
  return copy.const_data_ptr<double>();
}

/// Messages of the torch-free solvers are ours already.
template <typename F>
auto with_checks(const F& f) {
  try {
    return f();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

SvmSolution solve_problem(const Inputs& in, const csrc::SvmSettings& settings,
                          const OptionalTensor& h, const OptionalTensor& lam0) {
  const auto p = read(in);
  Tensor h_copy, lam0_copy;
  const csrc::SvmTask task{p.view, p.pairs, entries_of("h", h, h_copy),
                           entries_of("lam0", lam0, lam0_copy)};
  return to_solution(p, with_checks([&] { return csrc::solve_svm(task, settings); }));
}

Solved solve_cpu(const Solve& a) {
  auto settings = check(a);
  const int64_t before = cancellations;
  settings.progress = [before](const csrc::SvmProgress&) { return cancellations == before; };
  const auto found = solve_problem(a.inputs(), settings, a.h, a.lam0);
  const auto info = at::empty({detail::kSvmInfoCount}, at::kDouble);
  double* numbers = info.mutable_data_ptr<double>();
  write_certificate(found.certificate, numbers);
  numbers[detail::kSvmStatus] = static_cast<double>(found.status);
  numbers[detail::kSvmSupportResolved] = found.support_resolved;
  numbers[detail::kSvmEpochs] = static_cast<double>(found.epochs);
  numbers[detail::kSvmIterations] = static_cast<double>(found.iterations);
  numbers[detail::kSvmZeroPairs] = static_cast<double>(found.zero_pairs);
  numbers[detail::kSvmMethodCode] = code_of(kMethods, found.method);
  numbers[detail::kSvmReasonCode] = code_of(kReasons, found.reason);
  const auto none = [&] { return at::full({a.x.size(1), a.z.size(1)}, kNaN, at::kDouble); };
  return {found.w.defined() ? found.w : none(), found.lam, found.nu, info};
}

// ---- svm_certificate ----

struct Certify {  // the arguments of svm_certificate
  const Tensor &x, &z, &row_ptr, &selection, &w, &lam;
  const OptionalTensor& tok;
  std::string_view norm;
  double tol_sv;

  Inputs inputs() const { return {"svm_certificate", x, z, row_ptr, selection, tok}; }
};
using CertifySignature = Tensor(const Tensor& x, const Tensor& z, const Tensor& row_ptr,
                                const Tensor& selection, const Tensor& w, const Tensor& lam,
                                const OptionalTensor& tok, std::string_view norm, double tol_sv);

Tensor certify_meta(const Certify& a) {
  const auto in = a.inputs();
  in.check();
  check_numbers(in.op, "w", a.w, {a.x.sym_size(1), a.z.sym_size(1)}, a.x);
  check_numbers(in.op, "lam", a.lam, {in.nnz()}, a.x);
  parse_norm(in.op, a.norm);
  return at::empty({detail::kSvmInfoCount}, a.x.options().dtype(at::kDouble));
}

csrc::Certificate certify(const Certify& a) {
  const auto in = a.inputs();
  const auto p = read(in);
  const auto norm = parse_norm(in.op, a.norm);
  const auto w = as_double(a.w);
  check_finite(in.op, "w", w);
  check_finite(in.op, "lam", as_double(a.lam));
  TORCH_CHECK(norm == csrc::SvmNorm::kFrobenius || p.pairs.equality.size() == 0, in.op,
              ": expected one selected token per query with the nuclear norm, but got several");
  const auto lam = at_pairs(p.pairs.inequality, a.lam);
  for (size_t j = 0; j < lam.size(); ++j)
    TORCH_CHECK(lam[j] >= 0, in.op, ": expected lam >= 0, but got ", lam[j], " at ",
                p.pairs.inequality.entry[j]);
  return csrc::certificate(p.view, p.pairs, w.const_data_ptr<double>(), lam.data(), norm);
}

Tensor certify_cpu(const Certify& a) {
  auto info = certify_meta(a).zero_();
  const auto c = certify(a);
  double* numbers = info.mutable_data_ptr<double>();
  write_certificate(c, numbers);
  numbers[detail::kSvmSupportResolved] = c.support_resolved(a.tol_sv);
  return info;
}

// ---- svm_finite_part ----

struct Finite {  // the arguments of svm_finite_part
  const Tensor &x, &z, &row_ptr, &selection;
  const OptionalTensor &w, &s, &tok;

  Inputs inputs() const { return {"svm_finite_part", x, z, row_ptr, selection, tok}; }
};
using FiniteSignature = std::tuple<Tensor, Tensor>(const Tensor& x, const Tensor& z,
                                                   const Tensor& row_ptr, const Tensor& selection,
                                                   const OptionalTensor& w, const OptionalTensor& s,
                                                   const OptionalTensor& tok);

std::tuple<Tensor, Tensor> finite_meta(const Finite& a) {
  const auto in = a.inputs();
  in.check();
  TORCH_CHECK(in.several(), in.op, ": expected the selection as bool [nnz], but got ",
              a.selection.scalar_type());
  TORCH_CHECK(a.w.has_value() != a.s.has_value(), in.op, ": expected either w or s, but got ",
              a.w ? "both" : "neither");
  if (a.w) check_numbers(in.op, "w", *a.w, {a.x.sym_size(1), a.z.sym_size(1)}, a.x);
  if (a.s) check_numbers(in.op, "s", *a.s, {in.nnz()}, a.x);
  const auto options = a.x.options().dtype(at::kDouble);
  return {at::empty_symint({a.x.sym_size(1), a.z.sym_size(1)}, options), at::empty({}, options)};
}

/// log(s_anchor / s_e) of the equality pairs.
std::vector<double> log_ratios(const Problem& p, const Tensor& s) {
  const double* data = s.const_data_ptr<double>();
  std::vector<double> wanted;
  for (int64_t q = 0; q < p.view.Q; ++q)
    for (int64_t e = p.pairs.equality.ptr[q]; e < p.pairs.equality.ptr[q + 1]; ++e)
      for (const int64_t entry : {p.pairs.anchor[q], p.pairs.equality.entry[e]}) {
        TORCH_CHECK(data[entry] > 0,
                    "svm_finite_part: expected s > 0 at selected entries, but got ", data[entry],
                    " at ", entry);
        const double log_s = std::log(data[entry]);
        if (entry == p.pairs.anchor[q])
          wanted.push_back(log_s);
        else
          wanted.back() -= log_s;
      }
  return wanted;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

std::tuple<Tensor, double> finite(const Finite& a) {
  const auto p = read(a.inputs());
  const csrc::FinitePart part(p.view, p.pairs);
  const auto sizes = {p.view.dx, p.view.dz};
  if (a.w) {
    const auto w = as_double(*a.w);
    check_finite("svm_finite_part", "w", w);
    return {to_tensor(part.project(w.const_data_ptr<double>()), sizes), 0.0};
  }
  const auto s = as_double(*a.s);
  check_finite("svm_finite_part", "s", s);
  const auto wanted = log_ratios(p, s);
  const auto W = part.minimum_norm(wanted.data());
  std::vector<double> reached(wanted.size());
  csrc::pair_margins(p.view, p.pairs.anchor, p.pairs.equality, W.data(), reached.data());
  const double size = distance(wanted, std::vector<double>(wanted.size()));
  return {to_tensor(W, sizes), size > 0 ? distance(reached, wanted) / size : 0.0};
}

std::tuple<Tensor, Tensor> finite_cpu(const Finite& a) {
  auto [w_fin, residual] = finite_meta(a);
  const auto [found, value] = finite(a);
  w_fin.copy_(found);
  residual.fill_(value);
  return {w_fin, residual};
}

// ---- other devices ----

template <typename Arguments>
[[noreturn]] void refuse_device(const Arguments& a) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, a.inputs().op, ": expected tensors on cpu, but got ",
                              a.x.device(),
                              "; the solvers run on the CPU in float64: pass x.cpu() and so on");
}
Solved solve_cuda(const Solve& a) { refuse_device(a); }
Tensor certify_cuda(const Certify& a) { refuse_device(a); }
std::tuple<Tensor, Tensor> finite_cuda(const Finite& a) { refuse_device(a); }

void cancel() { ++cancellations; }

template <auto kernel>
constexpr auto* solve_call = &detail::Packed<Solve, kernel, SolveSignature>::call;
template <auto kernel>
constexpr auto* certify_call = &detail::Packed<Certify, kernel, CertifySignature>::call;
template <auto kernel>
constexpr auto* finite_call = &detail::Packed<Finite, kernel, FiniteSignature>::call;

Inputs inputs_of(std::string_view op, const TokenSets& sets, const Tensor& selection) {
  const Inputs in{op, sets.x, sets.z, sets.row_ptr, selection, sets.tok};
  in.check();
  TORCH_CHECK(sets.x.is_cpu(), op, ": expected tensors on cpu, but got ", sets.x.device());
  return in;
}

}  // namespace

// ---- C++ ----

TokenSets TokenSets::cross(const Tensor& X, const Tensor& Z) {
  TORCH_CHECK(X.dim() == 3 && Z.dim() == 2 && Z.size(0) == X.size(0),
              "TokenSets: expected X [n, T, d] and Z [n, dz], but got ", X.sizes(), " and ",
              Z.sizes());
  return {X.flatten(0, 1), Z, at::arange(X.size(0) + 1, at::kLong) * X.size(1), {}};
}

TokenSets TokenSets::self(const Tensor& X, int64_t position) {
  TORCH_CHECK(X.dim() == 3 && 0 <= position && position < X.size(1),
              "TokenSets: expected X [n, T, d] and a position below T, but got ", X.sizes(),
              " and ", position);
  return cross(X, X.select(1, position));
}

TokenSets TokenSets::sequence(const Tensor& X, bool causal) {
  TORCH_CHECK(X.dim() == 3, "TokenSets: expected X [n, T, d], but got ", X.sizes());
  const auto index = csrc::sequence_index(X.size(0), X.size(1), causal);
  const auto tensor = [](const std::vector<int64_t>& values) {
    auto t = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
    std::copy(values.begin(), values.end(), t.mutable_data_ptr<int64_t>());
    return t;
  };
  const auto rows = X.flatten(0, 1);
  return {rows, rows, tensor(index.row_ptr), tensor(index.tok)};
}

SvmSolution att_svm(const TokenSets& sets, const Tensor& selection,
                    const csrc::SvmSettings& settings, const OptionalTensor& h,
                    const OptionalTensor& lam0) {
  const auto in = inputs_of("svm_solve", sets, selection);
  if (h) check_numbers(in.op, "h", *h, {in.nnz()}, sets.x);
  if (lam0) check_numbers(in.op, "lam0", *lam0, {in.nnz()}, sets.x);
  return solve_problem(in, settings, h, lam0);
}

std::vector<SvmSolution> att_svms(const std::vector<TokenSets>& sets,
                                  const std::vector<Tensor>& selections,
                                  const csrc::SvmSettings& settings) {
  TORCH_CHECK(sets.size() == selections.size(),
              "svm_solve: expected a selection for every problem, but got ", selections.size(),
              " for ", sets.size());
  std::vector<Problem> problems;
  std::vector<csrc::SvmTask> tasks;
  for (size_t i = 0; i < sets.size(); ++i)
    problems.push_back(read(inputs_of("svm_solve", sets[i], selections[i])));
  for (const auto& p : problems) tasks.push_back({p.view, p.pairs});
  const auto results = with_checks([&] { return csrc::solve_svms(tasks, settings); });
  std::vector<SvmSolution> solutions;
  for (size_t i = 0; i < results.size(); ++i)
    solutions.push_back(to_solution(problems[i], results[i]));
  return solutions;
}

csrc::Certificate svm_certificate(const TokenSets& sets, const Tensor& selection, const Tensor& w,
                                  const Tensor& lam, csrc::SvmNorm norm) {
  inputs_of("svm_certificate", sets, selection);
  const Certify arguments{
      sets.x, sets.z, sets.row_ptr, selection,
      w,      lam,    sets.tok,     norm == csrc::SvmNorm::kNuclear ? "nuclear" : "frobenius",
      1e-6};
  certify_meta(arguments);
  return certify(arguments);
}

std::tuple<Tensor, double> svm_finite_part(const TokenSets& sets, const Tensor& selection,
                                           const OptionalTensor& w, const OptionalTensor& s) {
  inputs_of("svm_finite_part", sets, selection);
  const Finite arguments{sets.x, sets.z, sets.row_ptr, selection, w, s, sets.tok};
  finite_meta(arguments);
  return finite(arguments);
}

TORCH_LIBRARY_FRAGMENT(kktorch, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "svm_solve(Tensor x, Tensor z, Tensor row_ptr, Tensor selection, *, Tensor? tok=None, "
      "Tensor? h=None, Tensor? lam0=None, str norm=\"frobenius\", str method=\"auto\", "
      "float? tol=None, int max_epochs=1000, int max_iters=20000, int inner=3, "
      "int check_every=10, int polish_max=4096, float kappa_max=1e7, float tol_sv=1e-6, "
      "int seed=0, bool drop_zero_pairs=False, float? time_limit=None) -> "
      "(Tensor w, Tensor lam, Tensor nu, Tensor info)",
      tags);
  m.def(
      "svm_certificate(Tensor x, Tensor z, Tensor row_ptr, Tensor selection, Tensor w, Tensor lam, "
      "*, Tensor? tok=None, str norm=\"frobenius\", float tol_sv=1e-6) -> Tensor",
      tags);
  m.def(
      "svm_finite_part(Tensor x, Tensor z, Tensor row_ptr, Tensor selection, *, Tensor? w=None, "
      "Tensor? s=None, Tensor? tok=None) -> (Tensor w_fin, Tensor residual)",
      tags);
  // Ends every solve of this process that is running, with its best certificate.
  m.def("_svm_cancel() -> ()", &cancel);
}
TORCH_LIBRARY_IMPL(kktorch, CPU, m) {
  m.impl("svm_solve", solve_call<solve_cpu>);
  m.impl("svm_certificate", certify_call<certify_cpu>);
  m.impl("svm_finite_part", finite_call<finite_cpu>);
}
TORCH_LIBRARY_IMPL(kktorch, CUDA, m) {
  m.impl("svm_solve", solve_call<solve_cuda>);
  m.impl("svm_certificate", certify_call<certify_cuda>);
  m.impl("svm_finite_part", finite_call<finite_cuda>);
}
TORCH_LIBRARY_IMPL(kktorch, Meta, m) {
  m.impl("svm_solve", solve_call<solve_meta>);
  m.impl("svm_certificate", certify_call<certify_meta>);
  m.impl("svm_finite_part", finite_call<finite_meta>);
}
TORCH_LIBRARY_IMPL(kktorch, Autograd, m) {
  for (const char* name : {"svm_solve", "svm_certificate", "svm_finite_part"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&detail::not_differentiable>());
}

}  // namespace kktorch
