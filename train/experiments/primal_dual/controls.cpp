// controls: simpler remedies and single switches of Attention-BN and Attention-SH, each in the
// trained classifiers of uea, digits and listops, against the one method that it differs from.
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>

#include "train/common/error.h"
#include "train/data/datasets.h"
#include "train/experiments/primal_dual/controlled_attention.h"
#include "train/experiments/primal_dual/experiments.h"
#include "train/experiments/primal_dual/training_comparison.h"

namespace kktorch::primal_dual {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using Operands = QueryKeyOptions::Operands;

struct Control {
  std::string label;
  std::string attention;  ///< as in runs/methods.h
  std::string reference;  ///< label of what it is compared with; none for the first one
  QueryKeyOptions change = {};
  bool learned_beta = false;
  bool count_weighting = false;

  bool centres_keys() const { return change.operands == Operands::kKeysCentred; }
  bool changes_model() const { return change.query_bias || change.operands != Operands::kPlain; }
};

const std::vector<Control> kControls = {
    {"softmax", "softmax", ""},
    {"softmax-querybias", "softmax", "softmax", {.query_bias = true}},
    {"qk-layernorm", "softmax", "softmax", {.operands = Operands::kLayerNorm}},
    {"qk-rmsnorm", "softmax", "softmax", {.operands = Operands::kRmsNorm}},
    {"softmax-keymean", "softmax", "softmax", {.operands = Operands::kKeysCentred}},
    {"bn", "bn", "softmax"},
    {"bn-learned", "bn", "bn", {}, /*learned_beta=*/true},
    {"bn-nostd", "bn-nostd", "bn"},
    {"bn-nostd-learned", "bn-nostd", "bn-nostd", {}, /*learned_beta=*/true},
    {"sh", "sh", "softmax"},
    {"sh-counted", "sh", "sh", {}, false, /*count_weighting=*/true},
};

const Control& control_named(const std::string& label) {
  const auto found = std::find_if(kControls.begin(), kControls.end(),
                                  [&](const Control& c) { return c.label == label; });
  if (found == kControls.end()) fail("controls: expected a control, but got '{}'", label);
  return *found;
}

ordered_json settings(Preset preset) {
  using Names = std::vector<std::string>;
  Names all;
  for (const auto& control : kControls) all.push_back(control.label);
  return {
      {"data", by_preset<Names>(preset, {"BasicMotions"}, {"JapaneseVowels"},
                                {"JapaneseVowels", "digits", "ListOps-small"})},
      {"epochs", by_preset<ordered_json>(preset, {{"BasicMotions", 1}}, {{"JapaneseVowels", 12}},
                                         {{"JapaneseVowels", 100}, {"digits", 100}})},
      {"methods",
       by_preset(preset, Names{"softmax", "softmax-keymean", "bn", "bn-learned"}, all, all)},
      {"timeseries", model_settings(DataKind::kSeries)},
      {"vit", model_settings(DataKind::kImages)},
      {"tokens", model_settings(DataKind::kTokens)},
      {"seeds", by_preset(preset, 2, 3, 5)}};
}

// ---- what is kept of a run

/// The strengths of a trained model, a list of one per head for every layer.
json learned_betas(const std::filesystem::path& folder, const Dataset&) {
  json layers = json::array();
  const auto trained = load_run(folder);
  for (const auto& parameter : module_of(trained.model).named_parameters()) {
    if (!parameter.key().ends_with(".beta")) continue;
    const auto beta = parameter.value().detach().to(at::kDouble).contiguous();
    layers.push_back(std::vector<double>(beta.const_data_ptr<double>(),
                                         beta.const_data_ptr<double>() + beta.numel()));
  }
  return layers;
}

at::Tensor probabilities(const Classifier& model, const Examples& examples) {
  return evaluate_logits(module_of(model), forward_of(model), examples).softmax(1).to(at::kDouble);
}

/// The largest difference between class probabilities of the test data with and without the mean of
/// the keys, same weights: in float32 and in float64.
json key_mean_deviation(const std::filesystem::path& folder, const Dataset& dataset) {
  const auto plain = load_run(folder), centred = load_run(folder);
  add_control(module_of(centred.model), {.operands = Operands::kKeysCentred});
  json deviations;
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const auto* run : {&plain, &centred}) module_of(run->model).to(dtype);
    const auto difference =
        probabilities(plain.model, dataset.test) - probabilities(centred.model, dataset.test);
    deviations.push_back(difference.abs().max().item<double>());
  }
  return deviations;
}

ComparedMethod compared(const Control& control, const EncoderOptions& base) {
  ComparedMethod method{method_named(control.attention, base)};
  method.method.label = control.label;
  auto& encoder = method.method.encoder;
  if (control.learned_beta) encoder.beta_mode = "per_head", method.inspect = learned_betas;
  if (control.centres_keys()) method.inspect = key_mean_deviation;
  encoder.count_weighting = control.count_weighting;
  if (control.changes_model())
    method.change = [change = control.change](torch::nn::Module& model) {
      add_control(model, change);
    };
  return method;
}

// ---- tables

std::vector<std::vector<Cell>> differences(const std::vector<Control>& controls,
                                           const TrainedMethods& trained) {
  std::vector<std::vector<Cell>> rows;
  for (size_t m = 0; m < controls.size(); ++m) {
    for (size_t r = 0; r < controls.size(); ++r)
      if (controls[r].label == controls[m].reference)
        rows.push_back(
            difference_rows({trained.final_epoch(r), trained.final_epoch(m)}, "{:+.2f}").front());
  }
  return rows;
}

/// "mean [least, largest]" of the strengths of all heads and seeds, by layer.
std::vector<Cell> beta_row(const std::string& label, const std::vector<json>& seeds) {
  std::vector<Cell> row = {label};
  for (size_t layer = 0; layer < seeds.front().size(); ++layer) {
    std::vector<double> values;
    for (const auto& layers : seeds)
      for (const double beta : layers.at(layer)) values.push_back(beta);
    const auto [least, largest] = std::minmax_element(values.begin(), values.end());
    row.push_back({{"text", fmt::format("{:.3f} [{:.3f}, {:.3f}]", mean(values), *least, *largest)},
                   {"value", mean(values)},
                   {"low", *least},
                   {"high", *largest}});
  }
  return row;
}

ResultTable beta_table(const Dataset& dataset, std::vector<std::vector<Cell>> rows) {
  std::vector<std::string> columns = {"method"};
  for (size_t layer = 1; layer < rows.front().size(); ++layer)
    columns.push_back(fmt::format("layer {}", layer));
  return {.title = fmt::format("{}: learned β, final epoch", dataset.name),
          .columns = columns,
          .rows = std::move(rows),
          .note = "Mean [least, largest] over heads and seeds; every β starts at 1.",
          .figure = Figure{.axis = "learned β", .across = "layer of the encoder"}};
}

std::vector<Cell> deviation_row(const std::string& label, const std::vector<json>& seeds) {
  std::vector<Cell> row = {label};
  for (size_t dtype = 0; dtype < 2; ++dtype) {
    std::vector<double> values;
    for (const auto& deviations : seeds) values.push_back(deviations.at(dtype));
    row.push_back(largest_cell(values, "{:.0e}"));
  }
  return row;
}

ResultTable deviation_table(const Dataset& dataset, std::vector<std::vector<Cell>> rows) {
  return {.title = fmt::format("{}: largest difference that the mean of the keys makes to class "
                               "probabilities, final epoch",
                               dataset.name),
          .columns = {"method", "float32", "float64"},
          .rows = std::move(rows),
          .note =
              "With and without it, the weights being the same, over all test samples and "
              "seeds: rounding. Trained apart, the two round differently in every update; what "
              "their accuracies differ by is no effect, and neither is as much elsewhere.",
          .figure = {}};
}

std::vector<ResultTable> tables_on(Context& context, const Dataset& dataset) {
  const auto base = encoder_of(base_config(context.settings(), dataset).model);
  std::vector<Control> controls;
  std::vector<ComparedMethod> methods;
  for (const auto& label : context.settings().at("methods")) {
    controls.push_back(control_named(label));
    methods.push_back(compared(controls.back(), base));
  }
  const auto trained = train_methods(context, dataset, methods);
  std::vector<std::vector<Cell>> betas, deviations;
  for (size_t m = 0; m < controls.size(); ++m) {
    if (controls[m].learned_beta)
      betas.push_back(beta_row(controls[m].label, trained.inspected[m]));
    if (controls[m].centres_keys())
      deviations.push_back(deviation_row(controls[m].label, trained.inspected[m]));
  }
  return {accuracy_table(context, dataset, trained),
          difference_table(dataset, differences(controls, trained)), beta_table(dataset, betas),
          deviation_table(dataset, deviations)};
}

std::vector<ResultTable> run(Context& context) {
  std::vector<ResultTable> tables;
  for (const auto& name : context.settings().at("data"))
    append(tables, tables_on(context, load_dataset(name)));
  return tables;
}

}  // namespace

Experiment controls() {
  return {.paper = kPaper,
          .name = "controls",
          .title = "Controls of Attention-BN and Attention-SH in trained classifiers",
          .claim =
              "The paper derives Attention-BN from batch normalisation of the inputs of a "
              "regression; checked here is which part of it matters in trained classifiers: "
              "re-centring queries, dividing by the standard deviation, learning the strength, "
              "against a learned query bias, normalisation of queries and keys over channels, and "
              "centring of the keys alone, which must change nothing; and weights of windows in "
              "Attention-SH.",
          .limits =
              "that a control is better or worse elsewhere: the sets are near their ceiling. The "
              "projections of the layer have biases, so that softmax attention holds a query bias "
              "per head already: another one changes the way of training, not what can be learned.",
          .times = {"6 s", "7 min", "10 h"},
          .settings = settings,
          .run = run};
}

}  // namespace kktorch::primal_dual
