#include "train/experiments/registry.h"

#include "train/common/error.h"
#include "train/experiments/attention_svm/experiments.h"
#include "train/experiments/convex/experiments.h"
#include "train/experiments/multihead/experiments.h"
#include "train/experiments/primal_dual/experiments.h"
#include "train/experiments/shallow/experiments.h"
#include "train/loop/table.h"

namespace kktorch {

const std::vector<Experiment>& experiments() {
  static const std::vector<Experiment> all = {
      primal_dual::uea(),
      primal_dual::digits(),
      primal_dual::listops(),
      primal_dual::controls(),
      primal_dual::redundancy(),
      primal_dual::retrieval(),
      primal_dual::svr(),
      attention_svm::local_converge(),
      attention_svm::multi_token(),
      attention_svm::svm_rank(),
      attention_svm::types(),
      attention_svm::visual(),
      attention_svm::prompt(),
      convex::student_teacher(),
      convex::modular(),
      convex::sparsity_path(),
      convex::japanese_vowels(),
      shallow::e1(),
      shallow::e2(),
      shallow::e3(),
      shallow::e4(),
      shallow::e5(),
      shallow::e6(),
      shallow::e7(),
      shallow::e8(),
      shallow::e9(),
      multihead::e1(),
      multihead::e2(),
      multihead::e3(),
      multihead::e4(),
      multihead::e5(),
      multihead::e6(),
      multihead::e7(),
      multihead::e8(),
  };
  return all;
}

const Experiment& find_experiment(const std::string& paper, const std::string& name) {
  std::string names;
  for (const auto& experiment : experiments()) {
    if (experiment.paper == paper && experiment.name == name) return experiment;
    names += fmt::format("{}{} {}", names.empty() ? "" : ", ", experiment.paper, experiment.name);
  }
  fail("reproduce: expected one of {}, but got {} {}", names, paper, name);
}

std::string experiments_text() {
  Table table({"paper", "experiment", "title", kPresetNames[0], kPresetNames[1], kPresetNames[2]});
  for (const auto& e : experiments())
    table.add({e.paper, e.name, e.title, e.times.at(0), e.times.at(1), e.times.at(2)});
  return table.text();
}

}  // namespace kktorch
