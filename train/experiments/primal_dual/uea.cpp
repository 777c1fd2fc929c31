// uea: classification of time series, the data sets of the UEA archive that are at hand.
#include "train/experiments/primal_dual/experiments.h"
#include "train/experiments/primal_dual/training_comparison.h"

namespace kktorch::primal_dual {
namespace {

nlohmann::ordered_json settings(Preset preset) {
  using Names = std::vector<std::string>;
  auto settings = comparison_settings(
      DataKind::kSeries,
      by_preset<Names>(preset, {"JapaneseVowels"},
                       {"JapaneseVowels", "BasicMotions", "GunPoint", "ItalyPowerDemand"},
                       {"JapaneseVowels", "BasicMotions", "GunPoint", "ItalyPowerDemand"}),
      by_preset<Names>(preset, {"softmax", "bnsh"},
                       {"softmax", "bn", "bn-nostd", "sh", "bnsh", "linear", "linear_bn"},
                       {"softmax", "bn", "bn-nostd", "sh", "bnsh", "linear", "linear_bn",
                        "linear_sh", "linear_bnsh"}),
      by_preset(preset, 2, 2, 10));
  settings["epochs"] = by_preset(preset, 1, 20, 100);
  return settings;
}

}  // namespace

Experiment uea() {
  return {.paper = kPaper,
          .name = "uea",
          .title = "Time series: accuracy of the attentions in one classifier",
          .claim =
              "The paper reports that Attention-BN, Attention-SH and both together classify the "
              "time series of ten UEA sets at least as well as softmax attention; checked here on "
              "JapaneseVowels, which is one of the ten, and on three other small sets.",
          .limits =
              "any superiority: these sets are small and near their ceiling, and a difference of a "
              "few test samples is no result. The other nine sets of the paper are not reproduced. "
              "Scales, beta, epsilon and the division by sigma are ours, and so is AdamW in place "
              "of RAdam. The column \"best on test\" takes the epoch from the test data.",
          .times = {"9 s", "8 min", "10 h"},
          .settings = settings,
          .run = compare_methods};
}

}  // namespace kktorch::primal_dual
