#include "ops/svm/margin_tracker.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svdvals.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/segment_reduce.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "csrc/svm/finite_part.h"
#include "csrc/svm/operators.h"
#include "csrc/svm/solve.h"
#include "ops/attn_dual.h"
#include "ops/attn_margin.h"
#include "ops/svm/token_rows.h"

namespace kktorch {
namespace {

using at::Tensor;

constexpr const char* kName = "margin_tracker";
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kRoundoff = 1.1102230246251565e-16;  // 2^-53: all arithmetic is float64

Tensor numbers(const Tensor& t) { return t.detach().to(at::kDouble); }

Tensor over_sets(const Tensor& values, const char* reduce, const Tensor& row_ptr) {
  return at::segment_reduce(values, reduce, /*lengths=*/row_ptr.diff(), /*indices=*/{},
                            /*offsets=*/{}, /*axis=*/0, /*unsafe=*/true);
}

double number(const Tensor& t) { return t.item<double>(); }

/// values in the shape and on the device of `like`.
Tensor tensor_of(std::vector<double> values, const Tensor& like) {
  return at::from_blob(values.data(), like.sizes(), at::kDouble).clone().to(like.device());
}

uint64_t fnv1a(const Tensor& selection) {
  const auto bytes = selection.cpu().contiguous();
  const auto* begin = static_cast<const unsigned char*>(bytes.const_data_ptr());
  uint64_t hash = 0xCBF29CE484222325U;
  for (size_t i = 0; i < bytes.nbytes(); ++i) hash = (hash ^ begin[i]) * 0x100000001B3U;
  return hash;
}

struct Field {
  const char* name;
  double MarginRecord::*value;
};
constexpr Field kFields[] = {{"step", &MarginRecord::step},
                             {"loss", &MarginRecord::loss},
                             {"excess_loss", &MarginRecord::excess_loss},
                             {"gradient_norm", &MarginRecord::gradient_norm},
                             {"vanished", &MarginRecord::vanished},
                             {"min_margin", &MarginRecord::min_margin},
                             {"slack", &MarginRecord::slack},
                             {"lower", &MarginRecord::lower},
                             {"upper", &MarginRecord::upper},
                             {"cos_certified", &MarginRecord::cos_certified},
                             {"lower_nuclear", &MarginRecord::lower_nuclear},
                             {"upper_nuclear", &MarginRecord::upper_nuclear},
                             {"state", &MarginRecord::state},
                             {"changes", &MarginRecord::changes},
                             {"stable", &MarginRecord::stable},
                             {"ties", &MarginRecord::ties},
                             {"norm", &MarginRecord::norm},
                             {"norm_nuclear", &MarginRecord::norm_nuclear},
                             {"balance", &MarginRecord::balance},
                             {"stable_rank", &MarginRecord::stable_rank},
                             {"probability_mean", &MarginRecord::probability_mean},
                             {"probability_min", &MarginRecord::probability_min},
                             {"entropy", &MarginRecord::entropy},
                             {"participation", &MarginRecord::participation},
                             {"kept", &MarginRecord::kept},
                             {"ambiguous", &MarginRecord::ambiguous},
                             {"support", &MarginRecord::support},
                             {"mass", &MarginRecord::mass},
                             {"regret_mean", &MarginRecord::regret_mean},
                             {"regret_max", &MarginRecord::regret_max},
                             {"locally_optimal", &MarginRecord::locally_optimal},
                             {"cos_frobenius", &MarginRecord::cos_frobenius},
                             {"cos_nuclear", &MarginRecord::cos_nuclear},
                             {"cos_corrected", &MarginRecord::cos_corrected},
                             {"gap_frobenius", &MarginRecord::gap_frobenius},
                             {"gap_nuclear", &MarginRecord::gap_nuclear}};

}  // namespace

std::vector<std::pair<std::string, double>> MarginRecord::fields() const {
  std::vector<std::pair<std::string, double>> result;
  for (const auto& [name, value] : kFields) result.emplace_back(name, this->*value);
  return result;
}

/// W and its norms; y_q = W z_q.
struct MarginTracker::Weights {
  Tensor W, y;
  Tensor singular;    // singular values of W, if they are wanted
  double bound = 0;   // what |W| is replaced by in the rounding of logits
  int64_t inner = 0;  // m of K and Q
  double balance = kUndefinedField;
};

// ---- the data

MarginTracker::MarginTracker(MarginTrackerOptions options) : options_(std::move(options)) {
  auto& o = options_;
  const detail::TokenSetTensors sets{kName, o.x, o.row_ptr, o.tok};
  detail::check_token_sets(sets);
  const int64_t queries = o.row_ptr.size(0) - 1, entries = sets.entries().expect_int();
  TORCH_CHECK(o.z.dim() == 2 && o.z.size(0) == queries && o.z.is_floating_point(), kName,
              ": expected z floating [", queries, ", dz], but got ", o.z.scalar_type(), " ",
              o.z.sizes());
  if (o.alpha) detail::check_selection(sets, *o.alpha);
  TORCH_CHECK(!(o.alpha && o.selected) && !(o.optimal && (o.alpha || o.selected)), kName,
              ": expected one of alpha, selected and optimal, but got several");
  const auto on_cpu = [](const std::optional<Tensor>& t) {
    return t ? std::optional<Tensor>(t->cpu()) : std::nullopt;
  };
  const auto row_ptr = o.row_ptr.cpu();
  const auto tok = on_cpu(o.tok);
  detail::check_token_values({kName, o.x, row_ptr, tok}, on_cpu(o.alpha));
  if (o.selected) {
    TORCH_CHECK(o.selected->dim() == 1 && o.selected->size(0) == entries &&
                    o.selected->scalar_type() == at::kBool,
                kName, ": expected selected bool [", entries, "], but got ",
                o.selected->scalar_type(), " ", o.selected->sizes());
    const auto none = over_sets(numbers(*o.selected), "max", o.row_ptr).eq(0).nonzero();
    TORCH_CHECK(none.numel() == 0, kName,
                ": expected a selected token in every set, but got none in query ",
                none.numel() ? none[0][0].item<int64_t>() : 0);
    // The first selected token stands for all of them.
    const auto place = at::arange(entries, o.row_ptr.options()).to(at::kDouble);
    const auto first =
        over_sets(at::where(*o.selected, place, static_cast<double>(entries)), "min", o.row_ptr);
    o.alpha = first.to(at::kLong) - o.row_ptr.slice(0, 0, queries);
  }
  o.x = o.x.detach();
  z_ = numbers(o.z);
  query_ = detail::query_of_entries({kName, o.x, o.row_ptr, o.tok});
  path_ = at::zeros({entries}, z_.options());
  if (o.selected) exact_ = std::make_shared<ExactData>(o);
}

// ---- one step

MarginTracker::Weights MarginTracker::weights_of(const MarginStep& step) const {
  const int64_t dx = options_.x.size(1), dz = z_.size(1);
  Weights w;
  if (step.W) {
    TORCH_CHECK(!step.K && !step.Q, kName, ": expected W or K and Q, but got both");
    TORCH_CHECK(step.W->dim() == 2 && step.W->size(0) == dx && step.W->size(1) == dz, kName,
                ": expected W [", dx, ", ", dz, "], but got ", step.W->sizes());
    w.W = numbers(*step.W);
    w.y = at::matmul(z_, w.W.t());
    w.bound = number(w.W.norm());
  } else {
    TORCH_CHECK(step.K && step.Q, kName, ": expected W or K and Q, but got neither");
    TORCH_CHECK(step.K->dim() == 2 && step.Q->dim() == 2 && step.K->size(0) == dx &&
                    step.Q->size(0) == dz && step.K->size(1) == step.Q->size(1),
                kName, ": expected K [", dx, ", m] and Q [", dz, ", m], but got ", step.K->sizes(),
                " and ", step.Q->sizes());
    const auto K = numbers(*step.K), Q = numbers(*step.Q);
    w.W = at::matmul(K, Q.t());
    w.y = at::matmul(at::matmul(z_, Q), K.t());
    w.inner = K.size(1);
    w.bound = number(K.norm() * Q.norm());
  }
  return w;
}

/// Singular values of finite weights.
void MarginTracker::add_singular_values(const MarginStep& step, Weights& w) const {
  if (!options_.nuclear) return;
  if (step.W) {
    w.singular = at::linalg_svdvals(w.W);
    return;
  }
  // Of the small factors: K Q^T = (orthogonal) R_K R_Q^T (orthogonal)^T.
  const auto K = numbers(*step.K), Q = numbers(*step.Q);
  w.singular = at::linalg_svdvals(
      at::matmul(std::get<1>(at::linalg_qr(K, "r")), std::get<1>(at::linalg_qr(Q, "r")).t()));
  w.balance = number(K.square().sum() + Q.square().sum()) / 2 - number(w.singular.sum());
}

/// d loss / d L over all entries, or nothing.
Tensor MarginTracker::logit_gradient(const MarginStep& step) const {
  if (!step.dlogits) {
    TORCH_CHECK(!step.queries, kName, ": expected dlogits with queries, but got none");
    return {};
  }
  auto where = at::arange(path_.size(0), options_.row_ptr.options());
  if (step.queries) {
    const auto& q = *step.queries;
    const int64_t Q = z_.size(0);
    TORCH_CHECK(
        q.dim() == 1 && q.scalar_type() == at::kLong &&
            (q.numel() == 0 || (q.min().item<int64_t>() >= 0 && q.max().item<int64_t>() < Q)),
        kName, ": expected queries int64 in 0 ... ", Q - 1, ", but got ", q.scalar_type(), " ",
        q.sizes());
    std::vector<Tensor> ranges;
    const auto row_ptr = options_.row_ptr.cpu();
    const auto chosen = q.cpu().contiguous();
    for (int64_t i = 0; i < chosen.size(0); ++i) {
      const int64_t query = chosen.const_data_ptr<int64_t>()[i];
      ranges.push_back(
          where.slice(0, row_ptr[query].item<int64_t>(), row_ptr[query + 1].item<int64_t>()));
    }
    where = ranges.empty() ? where.slice(0, 0, 0) : at::cat(ranges);
  }
  const auto& given = *step.dlogits;
  TORCH_CHECK(given.dim() == 1 && given.size(0) == where.size(0) && given.is_floating_point(),
              kName, ": expected dlogits floating [", where.size(0), "], but got ",
              given.scalar_type(), " ", given.sizes());
  const auto gradient = step.scale * numbers(given);
  return step.queries ? at::zeros_like(path_).index_copy(0, where, gradient) : gradient;
}

/// The same with the entry of alpha replaced so that every set sums to 0, as it does exactly.
Tensor MarginTracker::balanced(const Tensor& gradient, const Tensor& alpha) const {
  const auto chosen = options_.row_ptr.slice(0, 0, -1) + alpha;
  const auto others = gradient.index_fill(0, chosen, 0);
  return others.index_copy(0, chosen, -over_sets(others, "sum", options_.row_ptr));
}

/// The fixed selection, or that of the largest score; nothing: the largest logit.
Tensor MarginTracker::selection(const MarginStep& step) const {
  if (step.score)
    TORCH_CHECK(step.score->dim() == 1 && step.score->size(0) == path_.size(0) &&
                    step.score->is_floating_point(),
                kName, ": expected score floating [", path_.size(0), "], but got ",
                step.score->scalar_type(), " ", step.score->sizes());
  if (options_.alpha) return *options_.alpha;
  if (!options_.optimal) return {};
  TORCH_CHECK(step.score, kName, ": expected score for the optimal selection, but got none");
  const auto score = numbers(*step.score).unsqueeze(1);
  return std::get<1>(attn_margin(score, at::ones({z_.size(0), 1}, z_.options()), options_.row_ptr));
}

/// Queries whose two largest scores agree.
double MarginTracker::score_ties(const Tensor& score) const {
  const auto values = numbers(score);
  const auto of_entries = [&](const Tensor& of_sets) { return of_sets.index_select(0, query_); };
  const auto best = over_sets(values, "max", options_.row_ptr),
             largest = over_sets(values.abs(), "max", options_.row_ptr);
  const auto near = values >= of_entries(best) - 1e-12 * of_entries(largest);
  return number((over_sets(numbers(near), "sum", options_.row_ptr) > 1).sum());
}

void MarginTracker::note_selection(MarginRecord& record) {
  record.hash = fnv1a(options_.selected ? *options_.selected : record.alpha);
  const bool changed = steps_ > 0 && record.hash != hash_;
  if (changed) {
    best_ = {};
    solution_ = nullptr;
  }
  changes_ += changed;
  stable_ = changed ? 0 : stable_ + (steps_ > 0);
  hash_ = record.hash;
  record.changes = static_cast<double>(changes_);
  record.stable = static_cast<double>(stable_);
}

/// Upper bounds by the positive part of `multipliers`. @return the sum of it.
double MarginTracker::tighten(const Tensor& alpha, const Tensor& multipliers) {
  const auto masked =
      options_.selected ? multipliers.masked_fill(*options_.selected, 0) : multipliers;
  const auto [adjoint, mass] =
      attn_dual(options_.x, z_, options_.row_ptr, alpha, masked, options_.tok);
  const double sum = number(mass.sum());
  if (!(sum > 0)) return sum;
  const auto M = complement(adjoint);
  best_.frobenius = std::min(best_.frobenius, number(M.norm()) / sum);
  if (options_.nuclear && !options_.selected)
    best_.nuclear = std::min(best_.nuclear, number(at::linalg_svdvals(M).max()) / sum);
  return sum;
}

/// The data in float64 on the CPU, and the space S_fin of several selected tokens.
struct MarginTracker::ExactData {
  Tensor x, z, row_ptr;
  std::optional<Tensor> tok;
  csrc::TokenSetsView<double> sets;
  csrc::Pairs pairs;  // of several selected tokens
  std::unique_ptr<csrc::FinitePart> finite;

  explicit ExactData(const MarginTrackerOptions& o)
      : x(o.x.to(at::kDouble).cpu().contiguous()),
        z(numbers(o.z).cpu().contiguous()),
        row_ptr(o.row_ptr.cpu().contiguous()) {
    if (o.tok) tok = o.tok->cpu().contiguous();
    sets = detail::token_sets_view<double>(x, row_ptr, tok);
    sets.z = z.const_data_ptr<double>();
    sets.dz = z.size(1);
    if (!o.selected) return;
    const auto selected = o.selected->cpu().contiguous();
    pairs = csrc::pairs_of_selection(sets.row_ptr, sets.Q, selected.const_data_ptr<bool>());
    finite = std::make_unique<csrc::FinitePart>(sets, pairs);
  }

  csrc::Pairs pairs_of(const Tensor& alpha) const {
    if (finite) return pairs;
    const auto selected = alpha.cpu().contiguous();
    return csrc::pairs_of_alpha(sets.row_ptr, sets.Q, selected.const_data_ptr<int64_t>());
  }
};

/// W - P_fin(W) if several tokens are selected, W else.
Tensor MarginTracker::complement(const Tensor& W) const {
  if (!options_.selected) return W;
  const auto source = W.cpu().contiguous();
  return tensor_of(exact_->finite->complement(source.const_data_ptr<double>()), W);
}

// ---- the SVMs of a selection that stays

struct MarginTracker::Solution {
  Tensor alpha;
  csrc::Pairs pairs;
  Tensor frobenius, nuclear;    // undefined where not certified
  std::vector<double> margins;  // A(Wmm) of the pairs
  double margin_error = 0, gap_frobenius = kUndefinedField, gap_nuclear = kUndefinedField;
};

void MarginTracker::solve(const Tensor& alpha) {
  if (!exact_) exact_ = std::make_shared<ExactData>(options_);
  auto solution = std::make_shared<Solution>();
  solution->alpha = alpha;
  solution->pairs = exact_->pairs_of(alpha);
  const auto start = path_.clamp_min(0).cpu();
  const csrc::SvmTask task{.sets = exact_->sets,
                           .pairs = solution->pairs,
                           .h = nullptr,
                           .lam0 = start.const_data_ptr<double>()};
  csrc::SvmSettings settings;
  settings.time_limit = options_.solve_seconds;
  const auto like = at::empty({options_.x.size(1), z_.size(1)}, z_.options());
  const auto found = csrc::solve_svm(task, settings);
  if (found.status == csrc::SvmStatus::kOptimal) {
    solution->frobenius = tensor_of(found.w, like);
    solution->gap_frobenius = found.certificate.gap;
    solution->margin_error = found.certificate.margin_error;
    solution->margins.resize(solution->pairs.inequality.size());
    csrc::pair_margins(exact_->sets, solution->pairs.anchor, solution->pairs.inequality,
                       found.w.data(), solution->margins.data());
  }
  if (options_.nuclear && !options_.selected) {
    settings.norm = csrc::SvmNorm::kNuclear;
    const auto nuclear = csrc::solve_svm(task, settings);
    if (nuclear.status == csrc::SvmStatus::kOptimal) {
      solution->nuclear = tensor_of(nuclear.w, like);
      solution->gap_nuclear = nuclear.certificate.gap;
    }
  }
  solution_ = std::move(solution);
}

std::map<std::string, Tensor> MarginTracker::state() const {
  const auto hash = static_cast<int64_t>(hash_);
  std::map<std::string, Tensor> state = {
      {"path", path_},
      {"counts", at::tensor({steps_, changes_, stable_, hash}, at::kLong)},
      {"bounds", at::tensor({best_.frobenius, best_.nuclear}, at::kDouble)}};
  if (!solution_) return state;
  const auto& s = *solution_;
  state["alpha"] = s.alpha;
  state["solved"] = at::tensor({s.margin_error, s.gap_frobenius, s.gap_nuclear}, at::kDouble);
  state["margins"] = at::tensor(s.margins, at::kDouble);
  if (s.frobenius.defined()) state["frobenius"] = s.frobenius;
  if (s.nuclear.defined()) state["nuclear"] = s.nuclear;
  return state;
}

void MarginTracker::load_state(const std::map<std::string, Tensor>& state) {
  const auto named = [&](const char* name, at::IntArrayRef sizes, at::ScalarType dtype) {
    const auto found = state.find(name);
    TORCH_CHECK(found != state.end() && found->second.sizes() == sizes &&
                    found->second.scalar_type() == dtype,
                kName, ": expected the state of these token sets, but got ",
                found == state.end() ? "none" : "another", " ", name);
    return found->second;
  };
  const auto path = named("path", path_.sizes(), at::kDouble);
  const auto counts = named("counts", {4}, at::kLong).cpu();
  const auto bounds = named("bounds", {2}, at::kDouble).cpu();
  std::shared_ptr<Solution> solution;
  if (state.contains("solved")) {
    if (!exact_) exact_ = std::make_shared<ExactData>(options_);
    solution = std::make_shared<Solution>();
    solution->alpha = named("alpha", {z_.size(0)}, at::kLong).to(z_.device());
    detail::check_token_values({kName, exact_->x, exact_->row_ptr, exact_->tok},
                               solution->alpha.cpu());
    solution->pairs = exact_->pairs_of(solution->alpha);
    const auto solved = named("solved", {3}, at::kDouble).cpu();
    solution->margin_error = number(solved[0]);
    solution->gap_frobenius = number(solved[1]);
    solution->gap_nuclear = number(solved[2]);
    const std::vector<int64_t> shape = {options_.x.size(1), z_.size(1)};
    if (state.contains("frobenius")) {
      solution->frobenius = named("frobenius", shape, at::kDouble).to(z_.device());
      const auto margins =
          named("margins", {solution->pairs.inequality.size()}, at::kDouble).cpu().contiguous();
      const double* begin = margins.const_data_ptr<double>();
      solution->margins.assign(begin, begin + margins.size(0));
    }
    if (state.contains("nuclear"))
      solution->nuclear = named("nuclear", shape, at::kDouble).to(z_.device());
  }
  path_ = path.to(z_.device());
  steps_ = counts[0].item<int64_t>();
  changes_ = counts[1].item<int64_t>();
  stable_ = counts[2].item<int64_t>();
  hash_ = static_cast<uint64_t>(counts[3].item<int64_t>());
  best_ = {number(bounds[0]), number(bounds[1])};
  solution_ = std::move(solution);
}

/// W against the solutions.
void MarginTracker::compare(const Tensor& W, const MarginStep& step, MarginRecord& r) const {
  if (!solution_) return;
  const auto cosine = [](const Tensor& a, const Tensor& b) {
    return number((a * b).sum() / (a.norm() * b.norm()));
  };
  r.gap_frobenius = solution_->gap_frobenius;
  r.gap_nuclear = solution_->gap_nuclear;
  if (solution_->nuclear.defined()) r.cos_nuclear = cosine(W, solution_->nuclear);
  if (!solution_->frobenius.defined()) return;
  r.cos_frobenius = cosine(W, solution_->frobenius);
  r.cos_corrected = cosine(complement(W), solution_->frobenius);
  if (!step.score || options_.selected) return;
  const auto score = numbers(*step.score).cpu().contiguous();
  const auto local =
      csrc::local_optimality(solution_->pairs, solution_->margins, score.const_data_ptr<double>(),
                             solution_->margin_error);
  if (local != csrc::LocalOptimality::kUnresolved)
    r.locally_optimal = local == csrc::LocalOptimality::kYes;
}

/// The selection's margins against the rounding of logits, and the brackets.
void MarginTracker::bracket(const Weights& w, const Tensor& longest, MarginRecord& r) const {
  const auto rounding = (longest * z_.norm(2, {1})).max();
  const auto width = options_.x.size(1) + z_.size(1) + w.inner + 4;
  r.slack = 2.2 * static_cast<double>(width) * kRoundoff * w.bound * number(rounding);
  r.min_margin = number(r.margin.min());
  const bool any = std::isfinite(r.min_margin);  // else no query has another token
  r.lower = any ? (r.min_margin - r.slack) / r.norm : kInfinity;
  if (std::isfinite(best_.frobenius)) r.upper = best_.frobenius;
  if (r.lower > 0 && best_.frobenius > 0)
    r.cos_certified = std::min(1.0, r.lower / best_.frobenius);
  if (w.singular.defined() && !options_.selected) {
    r.norm_nuclear = number(w.singular.sum());
    r.lower_nuclear = any ? (r.min_margin - r.slack) / r.norm_nuclear : kInfinity;
    if (std::isfinite(best_.nuclear)) r.upper_nuclear = best_.nuclear;
    r.stable_rank = std::pow(r.norm / number(w.singular.max()), 2);
    r.balance = w.balance;
  }
  // rho <= 2 max |x| |z|: an upper bound this small proves that no W of moderate norm is feasible.
  const double kappa = 2 * number(rounding) / best_.frobenius;
  r.state = r.lower > 0 ? 1 : kappa >= options_.kappa_max ? 2 : 0;
}

/// What the softmax does with the tokens.
void MarginTracker::describe_softmax(const Tensor& margin, const Tensor& others, double scale,
                                     const Tensor& probability, const Tensor& entropy,
                                     MarginRecord& r) const {
  // s = exp(scale (L - max L)) max s; margins are differences from alpha, which need not be the
  // max.
  const auto least = over_sets(margin, "min", options_.row_ptr).index_select(0, query_);
  const auto s = (scale * (least - margin)).exp() * probability.index_select(0, query_);
  const auto queries = static_cast<double>(z_.size(0));
  r.probability_mean = number(probability.mean());
  r.probability_min = number(probability.min());
  r.entropy = number(entropy.mean());
  r.participation = number(over_sets(s.square(), "sum", options_.row_ptr).reciprocal().mean());
  r.kept = number((s > 1e-3).sum()) / queries;
  r.ambiguous = number((s <= 1e-3).logical_and(s > 1e-6).sum());
  const auto limit = r.margin.index_select(0, query_);
  r.support = number((others <= limit + 0.01 * limit.abs()).sum()) / queries;
}

void MarginTracker::describe_scores(const MarginStep& step, MarginRecord& r) const {
  if (!step.score) return;
  const auto score = numbers(*step.score);
  const auto best = over_sets(score, "max", options_.row_ptr);
  const auto regret = best - score.index_select(0, options_.row_ptr.slice(0, 0, -1) + r.alpha);
  r.regret_mean = number(regret.mean());
  r.regret_max = number(regret.max());
}

/// Margins of the tokens that are not selected; +inf at those that are.
Tensor MarginTracker::other_margins(const Tensor& margin, const Tensor& alpha) const {
  if (options_.selected) return margin.masked_fill(*options_.selected, kInfinity);
  return margin.index_fill(0, options_.row_ptr.slice(0, 0, -1) + alpha, kInfinity);
}

/// The multipliers of this step and of the sum over steps.
void MarginTracker::use_gradient(const MarginStep& step, const Tensor& gradient, MarginRecord& r) {
  const auto forces = balanced(gradient, r.alpha);
  r.mass = tighten(r.alpha, forces);
  const auto [plus, plus_mass] =
      attn_dual(options_.x, z_, options_.row_ptr, r.alpha, forces, options_.tok);
  const auto [minus, minus_mass] =
      attn_dual(options_.x, z_, options_.row_ptr, r.alpha, -forces, options_.tok);
  r.gradient_norm = number((plus - minus).norm());
  r.vanished = r.gradient_norm < 1e-12;
  path_ = path_ + step.omega.value_or(1 / (r.gradient_norm + 2 * kRoundoff)) * forces;
  tighten(r.alpha, path_);
}

MarginRecord MarginTracker::step(const MarginStep& step) {
  const at::NoGradGuard no_grad;
  auto weights = weights_of(step);
  const auto given = selection(step);
  const auto gradient = logit_gradient(step);
  auto [margin, alpha, least, least_at, probability, entropy, longest] =
      attn_margin(options_.x, weights.y, options_.row_ptr, options_.tok,
                  given.defined() ? std::optional<Tensor>(given) : std::nullopt, step.scale);
  const auto bad = probability.isnan().nonzero();
  TORCH_CHECK(bad.numel() == 0, kName, ": expected finite logits, but got NaN or Inf in query ",
              bad.numel() ? bad[0][0].item<int64_t>() : 0);
  add_singular_values(step, weights);
  MarginRecord r;
  r.step = static_cast<double>(steps_);
  r.loss = step.loss;
  r.excess_loss = step.loss - step.loss_star;
  r.alpha = alpha;
  note_selection(r);
  if (gradient.defined()) use_gradient(step, gradient, r);
  auto others = other_margins(margin, alpha);
  const auto W = complement(weights.W);
  if (options_.selected) {  // margins of the part of W that can grow
    const auto rest = std::get<0>(attn_margin(options_.x, at::matmul(z_, W.t()), options_.row_ptr,
                                              options_.tok, alpha, step.scale));
    others = other_margins(rest, alpha);
  }
  r.margin = over_sets(others, "min", options_.row_ptr);
  r.ties = options_.alpha    ? 0
           : given.defined() ? score_ties(*step.score)
                             : number((least <= 1e-12 * longest * weights.y.norm(2, {1})).sum());
  r.norm = number(W.norm());
  bracket(weights, longest, r);
  describe_softmax(margin, others, step.scale, probability, entropy, r);
  describe_scores(step, r);
  if (options_.solve_after > 0 && stable_ >= options_.solve_after && !solution_) solve(alpha);
  compare(weights.W, step, r);
  ++steps_;
  return r;
}

}  // namespace kktorch
