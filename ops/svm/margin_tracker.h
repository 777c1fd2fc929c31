#pragma once
// What an attention layer selects, by which margin, and how far that is from the largest margin
// there is (the attention SVM: Tarzanagh et al., arXiv 2308.16898; the bracket is weak duality).
//
// Query q sees tokens x_t of its set with logits L_t = x_t^T W z_q, W = K Q^T or itself. For the
// selected tokens alpha and any multipliers lam >= 0,
//
//     lower = (min_qt (L_alpha - L_t) - slack) / |W|  <=  1 / |Wmm|  <=  upper = |A*(lam)| / sum
//     lam
//
// in the Frobenius norm (the dual norm is its own) and in the nuclear norm (dual: operator norm).
// Wmm solves the SVM of alpha and is never needed for it. The multipliers come from the gradient
// that training has anyway: [dLoss/dL]+ of this step, and of the sum over steps. `slack` bounds
// rounding.
#include <ATen/core/Tensor.h>

#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace kktorch {

inline constexpr double kUndefinedField = std::numeric_limits<double>::quiet_NaN();

/// Data and selection. Entry k is row tok[k] of x, row k without tok; query q sees the entries
/// row_ptr[q] ... row_ptr[q + 1] - 1. All tensors on one device.
struct MarginTrackerOptions {
  at::Tensor x;                             ///< [N, dx], float16, bfloat16, float32 or float64
  at::Tensor z;                             ///< [Q, dz]
  at::Tensor row_ptr;                       ///< int64 [Q + 1]
  std::optional<at::Tensor> tok = {};       ///< int64 [nnz]
  std::optional<at::Tensor> alpha = {};     ///< int64 [Q]: a fixed selection; default: the argmax
  std::optional<at::Tensor> selected = {};  ///< bool [nnz]: several fixed tokens per query instead
  bool optimal = false;                     ///< select the largest score of every step instead
  bool nuclear = true;                      ///< also the bracket of the nuclear norm
  int64_t solve_after = 20;  ///< steps with one selection after which its SVMs are solved; 0: never
  double solve_seconds = 60;  ///< time limit of each of these solves
  double kappa_max = 1e7;     ///< infeasible: no W with rho |W|_F below it has this selection
};

/// What the training loop knows at a step.
struct MarginStep {
  std::optional<at::Tensor> W = {};          ///< [dx, dz]
  std::optional<at::Tensor> K = {}, Q = {};  ///< [dx, m] and [dz, m] instead
  std::optional<at::Tensor> dlogits = {};    ///< [nnz], d loss / d (scale L)
  std::optional<at::Tensor> queries = {};    ///< int64: dlogits are of the entries of these only
  std::optional<at::Tensor> score = {};      ///< [nnz], Y grad h(o).x: which token would be best
  double scale = 1;                          ///< of the logits in the softmax
  double loss = kUndefinedField, loss_star = kUndefinedField;  ///< loss_star: its infimum
  std::optional<double> omega = {};  ///< weight of this step in the sum of multipliers; default
                                     ///< 1 / (|dLoss/dW|_F + 2^-52)
};

/// Numbers of one step; NaN where something is not known.
struct MarginRecord {
  double step = 0, loss = kUndefinedField, excess_loss = kUndefinedField;
  double gradient_norm = kUndefinedField;  ///< |dLoss/dW|_F
  double vanished = kUndefinedField;       ///< 1: gradient_norm < 1e-12
  double min_margin = kUndefinedField, slack = kUndefinedField;
  double lower = kUndefinedField, upper = kUndefinedField;  ///< of 1 / |Wmm|_F
  double cos_certified = kUndefinedField;  ///< <= cos(W, Wmm): lower / upper while lower > 0
  double lower_nuclear = kUndefinedField, upper_nuclear = kUndefinedField;
  double state = 0;    ///< 1 separated (lower > 0), 2 infeasible, 0 unknown
  double changes = 0;  ///< of the selection, up to now
  double stable = 0;   ///< steps since the last one
  double ties = 0;     ///< queries whose two largest logits agree to 1e-12 |x| |W z|, or with
                       ///< `optimal` scores to 1e-12 of the largest; 0 of a given selection
  double norm = kUndefinedField, norm_nuclear = kUndefinedField;  ///< of W
  double balance = kUndefinedField;      ///< (|K|^2 + |Q|^2) / 2 - |W|_*, >= 0
  double stable_rank = kUndefinedField;  ///< |W|_F^2 / |W|_op^2
  double probability_mean = kUndefinedField, probability_min = kUndefinedField;  ///< of max_t s
  double entropy = kUndefinedField;        ///< mean over queries, nats
  double participation = kUndefinedField;  ///< mean of 1 / |s|^2
  double kept = kUndefinedField;           ///< mean number of tokens with s > 1e-3
  double ambiguous = kUndefinedField;      ///< number of tokens with 1e-6 < s <= 1e-3
  double support =
      kUndefinedField;            ///< mean number of tokens within 1.01 of the query's least margin
  double mass = kUndefinedField;  ///< sum lam of this step
  double regret_mean = kUndefinedField,
         regret_max = kUndefinedField;       ///< best score - score of alpha
  double locally_optimal = kUndefinedField;  ///< 1 yes, 0 no, NaN unresolved or not solved
  double cos_frobenius = kUndefinedField, cos_nuclear = kUndefinedField;  ///< with Wmm and Wmm*
  double cos_corrected = kUndefinedField;  ///< several tokens: of the part of W that can grow
  double gap_frobenius = kUndefinedField, gap_nuclear = kUndefinedField;  ///< of these solutions

  at::Tensor alpha;   ///< int64 [Q]; with several selected tokens the first of them
  at::Tensor margin;  ///< [Q], the least margin of every query
  uint64_t hash = 0;  ///< FNV-1a of the selection

  /// Name and value of every number above, in this order.
  std::vector<std::pair<std::string, double>> fields() const;
};

class MarginTracker {
 public:
  /// @throws c10::Error  "margin_tracker: expected <what>, but got <values>".
  explicit MarginTracker(MarginTrackerOptions options);

  /// Measures the weights before the update that `step` belongs to.
  /// @throws c10::Error  "margin_tracker: expected finite logits, but got NaN or Inf in query <q>",
  ///     and where `step` does not fit the data; the tracker is then unchanged.
  MarginRecord step(const MarginStep& step);

  /// Sum over steps of omega scale dlogits, float64 [nnz]; sums to 0 over every set. If W was moved
  /// by omega times its gradient every time, W = W_0 + A*(path) for every selection.
  const at::Tensor& path() const { return path_; }

  /// What the steps have left behind, by name, for load_state() of a tracker with these options.
  std::map<std::string, at::Tensor> state() const;

  /// Goes on where state() was taken.
  /// @throws c10::Error  "margin_tracker: expected the state of these token sets, but got <what>".
  void load_state(const std::map<std::string, at::Tensor>& state);

  const MarginTrackerOptions& options() const { return options_; }

 private:
  struct Weights;
  struct ExactData;
  struct Solution;
  struct Bounds {
    double frobenius = std::numeric_limits<double>::infinity();
    double nuclear = std::numeric_limits<double>::infinity();
  };

  Weights weights_of(const MarginStep& step) const;
  void add_singular_values(const MarginStep& step, Weights& weights) const;
  at::Tensor logit_gradient(const MarginStep& step) const;
  at::Tensor balanced(const at::Tensor& gradient, const at::Tensor& alpha) const;
  at::Tensor selection(const MarginStep& step) const;
  at::Tensor other_margins(const at::Tensor& margin, const at::Tensor& alpha) const;
  at::Tensor complement(const at::Tensor& W) const;
  double score_ties(const at::Tensor& score) const;
  void note_selection(MarginRecord& record);
  double tighten(const at::Tensor& alpha, const at::Tensor& multipliers);
  void use_gradient(const MarginStep& step, const at::Tensor& gradient, MarginRecord& record);
  void bracket(const Weights& weights, const at::Tensor& longest, MarginRecord& record) const;
  void describe_softmax(const at::Tensor& margin, const at::Tensor& others, double scale,
                        const at::Tensor& probability, const at::Tensor& entropy,
                        MarginRecord& record) const;
  void describe_scores(const MarginStep& step, MarginRecord& record) const;
  void solve(const at::Tensor& alpha);
  void compare(const at::Tensor& W, const MarginStep& step, MarginRecord& record) const;

  MarginTrackerOptions options_;
  at::Tensor z_, query_, path_;
  std::shared_ptr<const ExactData> exact_;    // where several tokens are selected, or SVMs solved
  std::shared_ptr<const Solution> solution_;  // of the selection of `hash_`
  Bounds best_;                               // upper bounds so far for the selection of `hash_`
  uint64_t hash_ = 0;
  int64_t steps_ = 0, changes_ = 0, stable_ = 0;
};

}  // namespace kktorch
