// digits: a small vision transformer on scikit-learn's digits; it stands in for DeiT-tiny on
// ImageNet, which is out of reach here.
#include "train/experiments/primal_dual/experiments.h"
#include "train/experiments/primal_dual/training_comparison.h"

namespace kktorch::primal_dual {
namespace {

nlohmann::ordered_json settings(Preset preset) {
  // Pixels as tokens take fifty epochs to learn from; patches of 2 x 2 are a quarter of the tokens.
  return {{"data", {"digits"}},
          {"epochs", {{"digits", by_preset(preset, 1, 60, 100)}}},
          {"methods", compared_names(preset)},
          {"vit", model_settings(DataKind::kImages, {{"patch", by_preset(preset, 2, 2, 1)}})},
          {"seeds", by_preset(preset, 2, 3, 10)}};
}

}  // namespace

Experiment digits() {
  return {.paper = kPaper,
          .name = "digits",
          .title = "Images: attentions in a small vision transformer",
          .claim =
              "The paper reports that a DeiT-tiny with Attention-BN, Attention-SH or both "
              "classifies ImageNet at least as well as with softmax attention; checked here in "
              "kind, on 8 x 8 images of digits.",
          .limits =
              "anything about ImageNet. One test sample weighs 0.2 %, and the set is near its "
              "ceiling. Scales, beta and epsilon are ours. The column \"best on test\" takes the "
              "epoch from the test data.",
          .times = {"4 s", "12 min", "3 h"},
          .settings = settings,
          .run = compare_methods};
}

}  // namespace kktorch::primal_dual
