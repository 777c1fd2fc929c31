#include "train/runs/model.h"

#include <array>
#include <sstream>

#include "models/torchscript.h"
#include "train/common/error.h"
#include "train/common/files.h"

namespace kktorch {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(EncoderOptions, width, heads, ffn, layers, dropout,
                                   attention_dropout, norm, norm_first, activation, attention,
                                   beta_mode, beta_init, use_std, eps, scales, tail,
                                   count_weighting, conv)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TimeSeriesClassifierOptions, channels, classes, max_length,
                                   encoder, ragged_masks)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SmallViTOptions, image_height, image_width, image_channels,
                                   patch, classes, encoder)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TokenClassifierOptions, vocabulary, classes, max_length,
                                   head_width, encoder)

namespace {

struct ModelKind {
  DataKind data;
  const char *name, *type, *examples;
};
constexpr std::array<ModelKind, 3> kKinds = {
    {{DataKind::kSeries, "timeseries", "TimeSeriesClassifier", "time series"},
     {DataKind::kImages, "vit", "SmallViT", "images"},
     {DataKind::kTokens, "tokens", "TokenClassifier", "sequences of tokens"}}};

const ModelKind& about(DataKind kind) { return kKinds.at(static_cast<size_t>(kind)); }

// What differs between the models: one overload each.

void fit_shape(TimeSeriesClassifierOptions& options, const Dataset& dataset) {
  options.channels = dataset.train.inputs.size(2);
  options.max_length = dataset.train.inputs.size(1);
}

void fit_shape(SmallViTOptions& options, const Dataset& dataset) {
  options.image_channels = dataset.train.inputs.size(1);
  options.image_height = dataset.train.inputs.size(2);
  options.image_width = dataset.train.inputs.size(3);
}

void fit_shape(TokenClassifierOptions& options, const Dataset& dataset) {
  options.vocabulary = dataset.vocabulary;
  options.max_length = dataset.train.inputs.size(1);
}

Classifier make(const TimeSeriesClassifierOptions& options) {
  return TimeSeriesClassifier(options);
}
Classifier make(const SmallViTOptions& options) { return SmallViT(options); }
Classifier make(const TokenClassifierOptions& options) { return TokenClassifier(options); }

at::Tensor logits(TimeSeriesClassifier& model, const at::Tensor& series, const at::Tensor& mask) {
  return model->forward(series, mask);
}

at::Tensor logits(SmallViT& model, const at::Tensor& images, const at::Tensor&) {
  return model->forward(images);
}

at::Tensor logits(TokenClassifier& model, const at::Tensor& tokens, const at::Tensor& mask) {
  return model->forward(tokens.to(at::kLong), mask);
}

/// Values [m, C] of all valid steps or pixels.
void standardise_with(auto& model, const at::Tensor& values) {
  const auto wide = values.to(at::kDouble);
  model->standardise_with(wide.mean(0), wide.std(0, /*unbiased=*/false));
}

void standardise(TimeSeriesClassifier& model, const Examples& fit) {
  standardise_with(model, fit.inputs.index({fit.padding_mask.logical_not()}));
}

void standardise(SmallViT& model, const Examples& fit) {
  standardise_with(model, fit.inputs.movedim(1, 3).flatten(0, 2));
}

void standardise(TokenClassifier&, const Examples&) {}  // tokens have no scale

}  // namespace

const char* model_name(DataKind kind) { return about(kind).name; }

ClassifierOptions default_options(DataKind kind) {
  switch (kind) {
    case DataKind::kImages:
      return SmallViTOptions{};
    case DataKind::kTokens:
      return TokenClassifierOptions{};
    default:
      return TimeSeriesClassifierOptions{};
  }
}

DataKind kind_of(const ClassifierOptions& options) {
  return static_cast<DataKind>(options.index());
}

const EncoderOptions& encoder_of(const ClassifierOptions& options) {
  return std::visit(
      [](const auto& chosen) -> auto& { return chosen.encoder; }, options);
}

EncoderOptions& encoder_of(ClassifierOptions& options) {
  return std::visit(
      [](auto& chosen) -> auto& { return chosen.encoder; }, options);
}

void fit_shape(ClassifierOptions& options, const Dataset& dataset) {
  const auto &model = about(kind_of(options)), &data = about(dataset.kind);
  if (model.data != data.data)
    fail("{}: expected the model {} for {}, but got {}, which takes {}", dataset.name, data.name,
         data.examples, model.name, model.examples);
  std::visit(
      [&](auto& chosen) {
        fit_shape(chosen, dataset);
        chosen.classes = std::ssize(dataset.class_labels);
      },
      options);
}

nlohmann::json to_json(const ClassifierOptions& options) {
  auto json = std::visit([](const auto& chosen) { return nlohmann::json(chosen); }, options);
  json["type"] = about(kind_of(options)).type;
  return json;
}

ClassifierOptions read_options(const nlohmann::json& json) {
  const auto type = json.at("type").get<std::string>();
  for (const auto& kind : kKinds) {
    if (type != kind.type) continue;
    auto options = default_options(kind.data);
    std::visit([&](auto& chosen) { json.get_to(chosen); }, options);
    return options;
  }
  fail("expected a model of type {}, {} or {}, but got {}", kKinds[0].type, kKinds[1].type,
       kKinds[2].type, type);
}

Classifier make_classifier(const ClassifierOptions& options) {
  return std::visit([](const auto& chosen) { return make(chosen); }, options);
}

torch::nn::Module& module_of(const Classifier& model) {
  return std::visit([](const auto& chosen) -> torch::nn::Module& { return *chosen.ptr(); }, model);
}

Trainer::Forward forward_of(Classifier model) {
  return [model](const at::Tensor& inputs, const at::Tensor& padding_mask) mutable {
    return std::visit([&](auto& chosen) { return logits(chosen, inputs, padding_mask); }, model);
  };
}

void standardise(Classifier& model, const Examples& fit) {
  std::visit([&](auto& chosen) { standardise(chosen, fit); }, model);
}

void save_torchscript(const Classifier& model, const std::filesystem::path& file) {
  std::ostringstream bytes;
  std::visit([&](const auto& chosen) { to_torchscript(*chosen).save(bytes); }, model);
  write_file(file, bytes.str());
}

}  // namespace kktorch
