#pragma once
// Trials of the theory experiments: independent runs, one thread each, in parallel over the cores;
// results do not depend on the number of threads. And statistics over trials, in which undefined
// values are counted and left out.
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "csrc/svm/solve.h"
#include "train/experiments/attention_svm/theory_data.h"
#include "train/experiments/context.h"
#include "train/experiments/result.h"

namespace kktorch::attention_svm {

inline constexpr const char* kPaper = "attention-svm";

/// trial(index) for every index of [first, last), in this order in the result; train/loop/trials.h
/// runs a block of them. Finished blocks are parts of the run (context.h), which a resumed run
/// reads back.
/// @param name  of the parts, and beside the progress bar.
std::vector<nlohmann::json> trials_in_blocks(Context& context, const std::string& name,
                                             int64_t first, int64_t last,
                                             const std::function<nlohmann::json(int64_t)>& trial);

/// The SVM of one selected token per input.
csrc::SvmResult solve(const Problem& problem, const std::vector<int64_t>& alpha,
                      csrc::SvmNorm norm = csrc::SvmNorm::kFrobenius,
                      std::optional<double> tol = {});

/// Certificate of any W and multipliers lam [nnz], whose negative elements count as 0.
csrc::Certificate certify(const Problem& problem, const std::vector<int64_t>& alpha,
                          const std::vector<double>& W, const std::vector<double>& lam,
                          csrc::SvmNorm norm = csrc::SvmNorm::kFrobenius);

/// Whether alpha is locally optimal for the scores gamma [nnz], by a solved Frobenius SVM.
csrc::LocalOptimality local_optimality(const Problem& problem, const std::vector<int64_t>& alpha,
                                       const csrc::SvmResult& svm,
                                       const std::vector<double>& gamma);

/// <a, b> / (|a| |b|).
double cosine(const std::vector<double>& a, const std::vector<double>& b);

/// NaN becomes null, which is "undefined" in a part.
nlohmann::json defined(double value);

/// The numbers at `place` of every trial, e.g. "/w/cosine/3"; undefined ones are left out.
std::vector<double> values_at(const std::vector<nlohmann::json>& trials, const std::string& place);

double median(std::vector<double> values);

/// "mean ± sd" of what is defined, with "(n of N)" where some trials are undefined; "-" for none.
Cell summary_cell(const std::vector<double>& values, size_t trials, const std::string& format);
Cell median_cell(const std::vector<double>& values, const std::string& format);
/// "share (hits of trials)"
Cell share_cell(int64_t hits, int64_t trials);

/// How many trials have `true` at `place`.
int64_t count_true(const std::vector<nlohmann::json>& trials, const std::string& place);

}  // namespace kktorch::attention_svm
