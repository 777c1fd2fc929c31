// digits: a small vision transformer on scikit-learn's digits; it stands in for DeiT-tiny on
// ImageNet, which is out of reach here.
#include "train/experiments/primal_dual/experiments.h"
#include "train/experiments/primal_dual/training_comparison.h"

namespace kktorch::primal_dual {
namespace {

nlohmann::ordered_json settings(Preset preset) {
  using Names = std::vector<std::string>;
  const Names all = {"softmax", "bn",     "bn-nostd",  "sh",
                     "bnsh",    "linear", "linear_bn", "linear_bnsh"};
  auto settings = comparison_settings(
      DataKind::kImages, {"digits"},
      by_preset<Names>(preset, {"softmax", "bnsh"}, {"softmax", "bn", "sh", "bnsh"}, all),
      by_preset(preset, 2, 2, 10));
  settings["epochs"] = by_preset(preset, 1, 20, 100);
  return settings;
}

}  // namespace

Experiment digits() {
  return {.paper = kPaper,
          .name = "digits",
          .title = "Images: accuracy of the attentions in a small vision transformer",
          .claim =
              "The paper reports that a DeiT-tiny with Attention-BN, Attention-SH or both "
              "classifies ImageNet at least as well as with softmax attention; checked here in "
              "kind, on 8 x 8 images of digits.",
          .limits =
              "anything about ImageNet. One test sample weighs 0.2 %, and the set is near its "
              "ceiling. Scales, beta and epsilon are ours. The column \"best on test\" takes the "
              "epoch from the test data.",
          .times = {"10 s", "8 min", "10 h"},
          .settings = settings,
          .run = compare_methods};
}

}  // namespace kktorch::primal_dual
