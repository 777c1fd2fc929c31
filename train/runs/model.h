#pragma once
// A classifier of any kind, as training, prediction and export see it.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <variant>

#include "models/small_vit.h"
#include "models/time_series_classifier.h"
#include "models/token_classifier.h"
#include "train/data/dataset.h"
#include "train/loop/trainer.h"

namespace kktorch {

// The alternatives stand in the order of DataKind: every kind of data has one model.
using Classifier = std::variant<TimeSeriesClassifier, SmallViT, TokenClassifier>;
using ClassifierOptions =
    std::variant<TimeSeriesClassifierOptions, SmallViTOptions, TokenClassifierOptions>;

/// The name of the model for a kind of data: "timeseries", "vit" or "tokens".
const char* model_name(DataKind kind);

/// The options of the model for a kind of data, with the model's own defaults.
ClassifierOptions default_options(DataKind kind);

DataKind kind_of(const ClassifierOptions& options);
EncoderOptions& encoder_of(ClassifierOptions& options);
const EncoderOptions& encoder_of(const ClassifierOptions& options);

/// Sets what the data decide: channels or vocabulary, classes, sizes or lengths.
/// @throws UserError if the model is for another kind of data.
void fit_shape(ClassifierOptions& options, const Dataset& dataset);

/// {"type": the name of the class, options…, "encoder": {…}}
nlohmann::json to_json(const ClassifierOptions& options);

/// The options that to_json wrote. @throws UserError, nlohmann::json::exception
ClassifierOptions read_options(const nlohmann::json& json);

/// A new model. @throws c10::ValueError for options that do not fit together.
Classifier make_classifier(const ClassifierOptions& options);

torch::nn::Module& module_of(const Classifier& model);

/// The forward function of a classifier, for Trainer and evaluate_logits.
Trainer::Forward forward_of(Classifier model);

/// Gives the model the mean and standard deviation of its inputs, where it wants them.
void standardise(Classifier& model, const Examples& fit);

/// Saves the model as TorchScript, readable in C++ and Python once libkktorch.so is loaded.
void save_torchscript(const Classifier& model, const std::filesystem::path& file);

}  // namespace kktorch
