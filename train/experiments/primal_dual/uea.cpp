// uea: classification of time series, the data sets of the UEA archive that are at hand.
#include "train/experiments/primal_dual/experiments.h"
#include "train/experiments/primal_dual/training_comparison.h"

namespace kktorch::primal_dual {
namespace {

using nlohmann::ordered_json;

ordered_json settings(Preset preset) {
  using Names = std::vector<std::string>;
  const Names all = {"JapaneseVowels", "BasicMotions", "GunPoint", "ItalyPowerDemand"};
  // An epoch of the small sets is one or two updates: quick gives them more epochs.
  const ordered_json quick = {{"JapaneseVowels", 20},
                              {"BasicMotions", 30},
                              {"GunPoint", 20},
                              {"ItalyPowerDemand", 20}},
                     full = {{"JapaneseVowels", 100},
                             {"BasicMotions", 100},
                             {"GunPoint", 100},
                             {"ItalyPowerDemand", 100}};
  return {{"data", by_preset(preset, Names{"JapaneseVowels"}, all, all)},
          {"epochs", by_preset(preset, ordered_json{{"JapaneseVowels", 1}}, quick, full)},
          {"methods", compared_names(preset)},
          {"timeseries", model_settings(DataKind::kSeries)},
          {"seeds", by_preset(preset, 2, 3, 10)}};
}

}  // namespace

Experiment uea() {
  return {.paper = kPaper,
          .name = "uea",
          .title = "Time series: attentions in one classifier",
          .claim =
              "The paper reports that Attention-BN, Attention-SH and both together classify the "
              "time series of ten UEA sets at least as well as softmax attention; checked here on "
              "JapaneseVowels, which is one of the ten, and on three other small sets.",
          .limits =
              "any superiority: these sets are small and near their ceiling, and a difference of a "
              "few test samples is no result. The other nine sets of the paper are not reproduced. "
              "Scales, beta, epsilon and the division by sigma are ours, and so is AdamW in place "
              "of RAdam. The column \"best on test\" takes the epoch from the test data.",
          .times = {"6 s", "10 min", "3 h"},
          .settings = settings,
          .run = compare_methods};
}

}  // namespace kktorch::primal_dual
