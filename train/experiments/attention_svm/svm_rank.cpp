// svm_rank: feasibility of the attention SVM for the optimal tokens of random data, and ranks of
// its two solutions, with certificates (theory_data.h; csrc/svm/solve.h).
#include <fmt/format.h>

#include <algorithm>

#include "csrc/svm/small_matrix.h"
#include "csrc/svm/solve.h"
#include "train/experiments/attention_svm/experiments.h"
#include "train/experiments/attention_svm/theory_data.h"
#include "train/experiments/attention_svm/trials.h"
#include "train/experiments/context.h"
#include "train/loop/progress.h"
#include "train/loop/trials.h"

namespace kktorch::attention_svm {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using Sizes = std::vector<std::vector<int64_t>>;

constexpr double kPublishedThreshold = 1e-7;  // of a singular value that counts
constexpr const char* kNone = "–";

ordered_json settings(Preset preset) {
  const Sizes all = {{5, 5}, {10, 5}, {15, 5}, {5, 10}, {5, 15}};
  const std::vector<int64_t> widths = {1, 2, 3, 4, 5, 10, 15, 20};
  return {{"sizes", by_preset<Sizes>(preset, {{5, 5}}, {{5, 5}}, all)},
          {"widths", by_preset<std::vector<int64_t>>(preset, {2, 5}, widths, widths)},
          {"tol_frobenius", 1e-10},
          {"tol_nuclear", 1e-8},
          {"seeds", by_preset(preset, 2, 100, 100)}};
}

/// What one instance gives. Ranks of problems without a certified solution are -1.
struct Instance {
  bool feasible = false, undecided = false;
  int64_t frobenius = -1, published = -1, nuclear = -1;
  bool nuclear_certified = false;
};

int64_t count_above(const csrc::SvmResult& result, int64_t d, double threshold) {
  const auto sigma = csrc::singular_values(result.w.data(), d, d);
  return std::count_if(sigma.begin(), sigma.end(), [=](double s) { return s > threshold; });
}

Instance solve(uint64_t seed, int64_t n, int64_t T, int64_t d, double tol_frobenius,
               double tol_nuclear) {
  const auto problem = draw_linear(seed, n, T, d);
  const auto alpha = problem.optimal();
  const csrc::SvmTask task{problem.sets(),
                           csrc::pairs_of_alpha(problem.row_ptr.data(), n, alpha.data())};
  csrc::SvmSettings settings;
  settings.tol = tol_frobenius;
  const auto frobenius = csrc::solve_svm(task, settings);
  Instance found;
  found.feasible = frobenius.status == csrc::SvmStatus::kOptimal;
  found.undecided = frobenius.status == csrc::SvmStatus::kNotCertified;
  if (!found.feasible) return found;
  found.frobenius = frobenius.certificate.rank;
  found.published = count_above(frobenius, d, kPublishedThreshold);
  settings.norm = csrc::SvmNorm::kNuclear;
  settings.tol = tol_nuclear;
  const auto nuclear = csrc::solve_svm(task, settings);
  found.nuclear = nuclear.certificate.rank;
  found.nuclear_certified =
      nuclear.status == csrc::SvmStatus::kOptimal && nuclear.certificate.rank_certified();
  return found;
}

/// All instances of one width, as lists.
json solve_width(const std::vector<uint64_t>& seeds, int64_t n, int64_t T, int64_t d,
                 const json& settings) {
  std::vector<Instance> found(seeds.size());
  const double frobenius = settings.at("tol_frobenius"), nuclear = settings.at("tol_nuclear");
  run_trials(static_cast<int64_t>(seeds.size()),
             [&](int64_t i) { found[i] = solve(seeds[i], n, T, d, frobenius, nuclear); });
  json lists = {
      {"frobenius", json::array()}, {"legacy", json::array()}, {"nuclear", json::array()}};
  int64_t feasible = 0, undecided = 0;
  for (const auto& instance : found) {
    feasible += instance.feasible;
    undecided += instance.undecided;
    lists["legacy"].push_back(instance.feasible ? instance.published : 1);
    if (instance.feasible) lists["frobenius"].push_back(instance.frobenius);
    if (instance.nuclear_certified) lists["nuclear"].push_back(instance.nuclear);
  }
  lists["feasible"] = feasible;
  lists["undecided"] = undecided;
  return lists;
}

Cell mean_cell(const json& values) {
  if (values.empty()) return kNone;
  return spread_cell(values.get<std::vector<double>>(), "{:.2f}");
}

class SvmRank {
 public:
  explicit SvmRank(Context& context) : context_(context), settings_(context.settings()) {
    columns_ = {"d"};
    for (const int64_t d : settings_.at("widths")) columns_.push_back(std::to_string(d));
  }

  std::vector<ResultTable> run() {
    const auto sizes = settings_.at("sizes").get<Sizes>();
    const auto widths = settings_.at("widths").get<std::vector<int64_t>>();
    Progress progress("svm_rank", static_cast<int64_t>(sizes.size() * widths.size()), 0);
    int64_t done = 0;
    for (const auto& size : sizes) {
      std::vector<json> found;
      for (const int64_t d : widths) {
        const auto name = fmt::format("n{}-T{}-d{}", size[0], size[1], d);
        found.push_back(context_.part(name, [&](const std::filesystem::path&) {
          return solve_width(context_.seeds(), size[0], size[1], d, settings_);
        }));
        progress.update(++done);
      }
      add_ranks(size, found);
      add_counts(size, found);
    }
    tables_.push_back(
        {.title = "Feasible instances, and nuclear solutions with a certified rank",
         .columns = columns_,
         .rows = counts_,
         .note = fmt::format("Of {} instances. Infeasible: a Farkas vector proves that every W "
                             "with the margins has rho |W|_F >= 1e7. Undecided: {}.",
                             context_.seeds().size(), undecided_),
         .figure = {}});
    return std::move(tables_);
  }

 private:
  void add_ranks(const std::vector<int64_t>& size, const std::vector<json>& found) {
    std::vector<std::vector<Cell>> rows = {
        {"Frobenius, infeasible counted as rank 1 (as published)"},
        {"Frobenius, feasible only"},
        {"nuclear, certified only"}};
    for (const auto& width : found) {
      rows[0].push_back(mean_cell(width.at("legacy")));
      rows[1].push_back(mean_cell(width.at("frobenius")));
      rows[2].push_back(mean_cell(width.at("nuclear")));
    }
    tables_.push_back(
        {.title = fmt::format("Rank of the solutions, corrected: n = {}, T = {}, by d", size[0],
                              size[1]),
         .columns = columns_,
         .rows = rows,
         .note = "Mean ± sd over instances. The published curve counts an infeasible instance as "
                 "rank 1, singular values above 1e-7, and for the nuclear norm the noise of a "
                 "first-order solver; a certified rank is that of every solution.",
         .figure =
             Figure{.axis = fmt::format("rank, n = {}, T = {}", size[0], size[1]), .across = "d"}});
  }

  void add_counts(const std::vector<int64_t>& size, const std::vector<json>& found) {
    std::vector<Cell> feasible = {fmt::format("n = {}, T = {}: feasible", size[0], size[1])};
    std::vector<Cell> certified = {"certified nuclear ranks"};
    const auto count = static_cast<double>(context_.seeds().size());
    for (const auto& width : found) {
      const int64_t hits = width.at("feasible"),
                    ranks = static_cast<int64_t>(width.at("nuclear").size());
      feasible.push_back(number_cell(static_cast<double>(hits) / count, "{:.2f}"));
      certified.push_back(hits == 0 ? Cell(kNone)
                                    : Cell{{"text", fmt::format("{} of {}", ranks, hits)},
                                           {"value", static_cast<double>(ranks)}});
      undecided_ += width.at("undecided").get<int64_t>();
    }
    counts_.push_back(std::move(feasible));
    counts_.push_back(std::move(certified));
  }

  Context& context_;
  json settings_;
  std::vector<std::string> columns_;
  std::vector<ResultTable> tables_;
  std::vector<std::vector<Cell>> counts_;
  int64_t undecided_ = 0;
};

}  // namespace

Experiment svm_rank() {
  return {.paper = kPaper,
          .name = "svm_rank",
          .title = "Feasibility and rank of attention SVMs",
          .claim =
              "With the optimal tokens selected, the attention SVM of random data is feasible "
              "at widths far below n and T, and its nuclear-norm solution has a low rank.",
          .limits =
              "Ranks without a certificate are left out of the nuclear means; their counts "
              "stand in the last table. Infeasible means: no W with rho |W|_F below 1e7.",
          .times = {"1 s", "2 s", "15 s"},
          .settings = settings,
          .run = [](Context& context) { return Findings(SvmRank(context).run()); }};
}

}  // namespace kktorch::attention_svm
