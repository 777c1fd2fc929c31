#include "train/cli/config_options.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "train/common/error.h"

namespace kktorch::cli {
namespace {

constexpr DataKind kKinds[] = {DataKind::kSeries, DataKind::kImages, DataKind::kTokens};

const CLI::Validator kFraction(
    [](const std::string& text) {
      char* end = nullptr;
      const double value = std::strtod(text.c_str(), &end);
      const bool valid = *end == '\0' && value >= 0 && value < 1;
      return valid ? std::string() : "expected 0 <= value < 1, but got " + text;
    },
    "in [0, 1)");

// Where a configuration keeps a value; nullptr if its model has none of the kind.
template <typename Value>
Value* find(RunConfig& config, Value TrainingConfig::*member) {
  return &(config.training.*member);
}

template <typename Value>
Value* find(RunConfig& config, Value EncoderOptions::*member) {
  return &(encoder_of(config.model).*member);
}

template <typename Value, typename Options>
Value* find(RunConfig& config, Value Options::*member) {
  auto* options = std::get_if<Options>(&config.model);
  return options ? &(options->*member) : nullptr;
}

/// "64" if all presets agree, else "timeseries 128, vit 64, tokens 64".
template <typename Value, typename Owner>
std::string defaults_text(Value Owner::*member) {
  std::vector<std::string> values, named;
  for (const auto kind : kKinds) {
    auto config = preset(kind);
    const auto* value = find(config, member);
    if (!value) continue;
    values.push_back(fmt::format("{}", *value));
    named.push_back(fmt::format("{} {}", model_name(kind), values.back()));
  }
  const bool agree = std::all_of(values.begin(), values.end(),
                                 [&](const auto& value) { return value == values.front(); });
  return agree ? values.front() : fmt::format("{}", fmt::join(named, ", "));
}

/// Sets the member that the option `name` stands for.
template <typename Value, typename Owner>
std::function<void(RunConfig&)> change(const std::string& name, Value Owner::*member, Value value) {
  return [=](RunConfig& config) {
    auto* place = find(config, member);
    if (!place)
      fail("train: expected options that the model {} has, but got {}",
           model_name(kind_of(config.model)), name);
    *place = value;
  };
}

/// Adds options under one heading. Their functions outlive it: they hold `changes`, not the group.
class Group {
 public:
  Group(const char* heading, CLI::App& app, ConfigChanges& changes)
      : heading_(heading), app_(app), changes_(changes) {}

  /// An option for one member of TrainingConfig, EncoderOptions or the options of one model.
  template <typename Value, typename Owner>
  CLI::Option* add(const std::string& name, Value Owner::*member, const char* text,
                   const CLI::Validator& valid) {
    const auto set = [&changes = changes_, name, member](const Value& value) {
      changes.push_back(change(name, member, value));
    };
    return app_.add_option_function<Value>(name, set, text)
        ->check(valid)
        ->default_str(defaults_text(member))
        ->group(heading_);
  }

  /// A flag that sets one of these members to `value`.
  template <typename Owner>
  void flag(const std::string& name, bool Owner::*member, bool value, const char* text) {
    const auto set = [&changes = changes_, name, member, value] {
      changes.push_back(change(name, member, value));
    };
    app_.add_flag_callback(name, set, text)->group(heading_);
  }

 private:
  const char* heading_;
  CLI::App& app_;
  ConfigChanges& changes_;
};

void add_training_options(CLI::App& app, ConfigChanges& changes) {
  Group group("Training", app, changes);
  using T = TrainingConfig;
  auto* steps = group.add("--steps", &T::steps, "updates; 0: as many as --epochs have",
                          CLI::NonNegativeNumber);
  group.add("--epochs", &T::epochs, "passes over the training data", CLI::PositiveNumber)
      ->each([&changes](const std::string&) {
        changes.push_back([](RunConfig& config) { config.training.steps = 0; });
      })
      ->excludes(steps);
  group.add("--batch-size", &T::batch_size, "examples per update", CLI::PositiveNumber);
  group.add("--lr", &T::learning_rate, "learning rate after the warm-up", CLI::NonNegativeNumber);
  group.add("--warmup", &T::warmup, "fraction of the updates with a rising learning rate",
            kFraction);
  group.add("--decay", &T::decay, "learning rate after the warm-up, to zero",
            CLI::IsMember({"cosine", "linear"}));
  group.add("--weight-decay", &T::weight_decay, "decoupled weight decay", CLI::NonNegativeNumber);
  group.add("--clip", &T::clip, "largest norm of the gradient", CLI::PositiveNumber);
  group.add("--validation", &T::validation,
            "fraction of the training data held out, unless they come with validation data",
            kFraction);
}

void add_model_options(CLI::App& app, ConfigChanges& changes) {
  Group group("Model", app, changes);
  using E = EncoderOptions;
  group.add("--width", &E::width, "width of the encoder", CLI::PositiveNumber);
  group.add("--heads", &E::heads, "attention heads", CLI::PositiveNumber);
  group.add("--ffn", &E::ffn, "width of the feed-forward layers", CLI::PositiveNumber);
  group.add("--layers", &E::layers, "encoder layers", CLI::PositiveNumber);
  group.add("--dropout", &E::dropout, "dropout of the activations", kFraction);
  group.add("--attention-dropout", &E::attention_dropout,
            "dropout of the attention probabilities (slow path)", kFraction);
  group.add("--norm", &E::norm, "normalisation of the encoder layers",
            CLI::IsMember({"batch", "batch_masked", "layer"}));
  group.add("--activation", &E::activation, "activation", CLI::IsMember({"gelu", "relu"}));
  group.add("--beta-mode", &E::beta_mode, "bn: re-centring strength",
            CLI::IsMember({"fixed", "scalar", "per_head"}));
  group.add("--beta", &E::beta_init, "bn: (initial) value of the re-centring strength",
            CLI::Number);
  group.add("--eps", &E::eps, "bn: variance floor", CLI::NonNegativeNumber);
  group
      .add("--scales", &E::scales, "sh: tokens in the windows of each head, or one number",
           CLI::PositiveNumber)
      ->delimiter(',')
      ->default_str("by the number of heads, e.g. 1,1,2,2 for 4");
  group.add("--tail", &E::tail, "sh: a short last window is kept or dropped",
            CLI::IsMember({"ceil", "drop"}));
  group.flag("--count-weighting", &E::count_weighting, true,
             "sh: a window weighs as much as it has tokens");
  group.add("--conv", &E::conv, "convolution of queries and keys; 2d: vit only",
            CLI::IsMember({"none", "1d", "2d"}));
  group.flag("--no-ragged-masks", &TimeSeriesClassifierOptions::ragged_masks, false,
             "timeseries: let attention see the padded steps");
  group.add("--patch", &SmallViTOptions::patch, "vit: height and width of a patch",
            CLI::PositiveNumber);
}

}  // namespace

void add_config_options(CLI::App& app, ConfigChanges& changes) {
  add_training_options(app, changes);
  add_model_options(app, changes);
}

}  // namespace kktorch::cli
