#include "train/experiments/convex/student_data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "train/common/error.h"
#include "train/data/array_file.h"
#include "train/experiments/context.h"
#include "train/loop/seed_stream.h"

namespace kktorch::convex {
namespace {

using at::Tensor;
using nlohmann::json;

Tensor layer_norm(const Tensor& x) {
  return (x - x.mean(-1, true)) / (x.var(-1, false, true) + 1e-12).sqrt();
}

/// Post-LN Transformer; weights are random, scaled so that the logits of every layer have standard
/// deviation 2.
class Teacher {
 public:
  Teacher(const json& s, uint64_t seed)
      : n_(s.at("tokens")),
        d_(s.at("width")),
        heads_(s.at("teacher_heads")),
        vocabulary_(s.at("vocabulary")),
        generator_(generator_of(seed, "student_teacher")) {
    embedding_ = normal({vocabulary_, d_}, 1);
    position_ = normal({n_, d_}, 1);
    const auto width = static_cast<double>(d_);
    for (int64_t l = 0; l < s.at("layers").get<int64_t>(); ++l) {
      Layer layer;
      for (auto* w : {&layer.q, &layer.k, &layer.v, &layer.o})
        *w = normal({d_, d_}, 1 / std::sqrt(width));
      layer.up = normal({d_, 4 * d_}, std::sqrt(2 / width));
      layer.down = normal({4 * d_, d_}, 1 / std::sqrt(4 * width));
      layers_.push_back(layer);
    }
    const auto q = at::linalg_qr(normal({d_, s.at("outputs").get<int64_t>()}, 1));
    readout_ = std::get<0>(q);
    auto x = embed(words(256, vocabulary_));
    for (auto& layer : layers_) {
      layer.q *= 2 / logits(x, layer).std(-1).mean().item<double>();
      x = block(x, layer);
    }
  }

  /// AdamW on sequences with one marker: class (token after the marker) mod 8 at position 0.
  void train(int64_t steps) {
    has_marker_ = true;
    const double width = static_cast<double>(d_);
    Tensor head = normal({d_, kClasses}, 1 / std::sqrt(width));
    auto weights = parameters();
    weights.push_back(&head);
    std::vector<Tensor> leaves;
    for (auto* w : weights) leaves.push_back(*w = w->to(at::kFloat).set_requires_grad(true));
    torch::optim::AdamW optimiser(leaves, torch::optim::AdamWOptions(1e-3));
    for (int64_t step = 0; step < steps; ++step) {
      if (step % 10 == 0) stop_if_interrupted();
      const auto ids = tokens(kBatch);
      const auto loss = torch::nn::functional::cross_entropy(classify(ids, head), labels(ids));
      optimiser.zero_grad();
      loss.backward();
      optimiser.step();
    }
    const torch::NoGradGuard no_grad;
    const auto ids = tokens(1024);
    accuracy_ =
        100 * classify(ids, head).argmax(1).eq(labels(ids)).to(at::kDouble).mean().item<double>();
    for (auto* w : weights) *w = w->detach().to(at::kDouble);
  }
  std::optional<double> accuracy() const { return accuracy_; }

  struct Examples {
    Tensor X, Y, map;  ///< [N, n, d], [N, c], attention of row 0 over heads [N, n]
  };
  Examples examples(int64_t count) {
    auto x = embed(tokens(count));
    for (size_t l = 0; l + 1 < layers_.size(); ++l) x = block(x, layers_[l]);
    const auto [out, map] = attention(x, layers_.back());
    return {x, out.select(1, 0).matmul(readout_), map.select(2, 0).mean(1)};
  }

 private:
  struct Layer {
    Tensor q, k, v, o, up, down;
  };
  static constexpr int64_t kClasses = 8, kBatch = 128;

  Tensor normal(at::IntArrayRef size, double sd) {
    return sd * torch::randn(size, generator_, at::kDouble);
  }
  std::vector<Tensor*> parameters() {
    std::vector<Tensor*> all = {&embedding_, &position_};
    for (auto& l : layers_)
      for (auto* w : {&l.q, &l.k, &l.v, &l.o, &l.up, &l.down}) all.push_back(w);
    return all;
  }

  /// Token 0 stands at position 0; the others follow Zipf's law over 1 .. limit - 1.
  Tensor words(int64_t count, int64_t limit) {
    const auto weight = 1 / torch::arange(1, limit, at::kDouble);
    auto ids = torch::multinomial(weight, count * (n_ - 1), true, generator_) + 1;
    return torch::cat({torch::zeros({count, 1}, at::kLong), ids.view({count, n_ - 1})}, 1);
  }
  /// Words; for a trained teacher the last token of the vocabulary is a marker, which stands once,
  /// not at the end.
  Tensor tokens(int64_t count) {
    if (!has_marker_) return words(count, vocabulary_);
    const auto place = torch::randint(1, n_ - 1, {count, 1}, generator_, at::kLong);
    return words(count, vocabulary_ - 1).scatter(1, place, vocabulary_ - 1);
  }
  Tensor labels(const Tensor& ids) const {
    const auto marker = ids.eq(vocabulary_ - 1).to(at::kLong).argmax(1, true);
    return ids.gather(1, marker + 1).squeeze(1) % kClasses;
  }

  Tensor embed(const Tensor& ids) const {
    return layer_norm(embedding_.index_select(0, ids.flatten()).view({-1, n_, d_}) + position_);
  }
  Tensor split(const Tensor& x) const {
    return x.view({-1, n_, heads_, d_ / heads_}).transpose(1, 2);
  }
  Tensor logits(const Tensor& x, const Layer& layer) const {
    return split(x.matmul(layer.q)).matmul(split(x.matmul(layer.k)).transpose(2, 3));
  }
  std::pair<Tensor, Tensor> attention(const Tensor& x, const Layer& layer) const {
    const auto map = logits(x, layer).softmax(-1);
    const auto mixed = map.matmul(split(x.matmul(layer.v))).transpose(1, 2).reshape({-1, n_, d_});
    return {mixed.matmul(layer.o), map};
  }
  Tensor block(const Tensor& x, const Layer& layer) const {
    const auto middle = layer_norm(x + attention(x, layer).first);
    return layer_norm(middle + middle.matmul(layer.up).relu().matmul(layer.down));
  }
  Tensor classify(const Tensor& ids, const Tensor& head) const {
    auto x = embed(ids);
    for (const auto& layer : layers_) x = block(x, layer);
    return x.select(1, 0).matmul(head);
  }

  int64_t n_, d_, heads_, vocabulary_;
  at::Generator generator_;
  Tensor embedding_, position_, readout_;
  std::vector<Layer> layers_;
  bool has_marker_ = false;
  std::optional<double> accuracy_;
};

StudentData standardised(const Tensor& X, const Tensor& Y, const Tensor& test_X,
                         const Tensor& test_Y) {
  const auto size = X.square().sum(-1).mean().sqrt().clamp_min(1e-300), mean = Y.mean(0);
  const auto spread = (Y - mean).square().mean().sqrt().clamp_min(1e-300);
  return {(X / size).contiguous(), ((Y - mean) / spread).contiguous(), (test_X / size).contiguous(),
          ((test_Y - mean) / spread).contiguous()};
}

StudentData of_teacher(const json& s, uint64_t seed, bool trained) {
  Teacher teacher(s, seed);
  if (trained) teacher.train(s.at("teacher_steps"));
  const auto train = teacher.examples(s.at("samples")),
             test = teacher.examples(s.at("test_samples"));
  auto data = standardised(train.X, train.Y, test.X, test.Y);
  data.map = test.map.mean(0);
  data.accuracy = teacher.accuracy();
  return data;
}

Tensor features_in(const std::string& file) {
  const auto X = read_array(file, "X");
  if (X.dim() != 3 || !X.is_floating_point() || X.size(0) < 2 || X.numel() == 0)
    fail("{}: expected features [N, n, d], floating, N >= 2, but got {} {}", file,
         c10::toString(X.scalar_type()), fmt::join(X.sizes(), "x"));
  return X.to(at::kDouble);
}

Tensor targets_in(const std::string& file, const Tensor& X) {
  auto Y = read_array(file, "Y");
  const bool has_ids = at::isIntegralType(Y.scalar_type(), false) && Y.dim() == 1;
  if (Y.dim() < 1 || Y.size(0) != X.size(0) ||
      !(has_ids ||
        (Y.is_floating_point() && (Y.dim() == 2 || (Y.dim() == 3 && Y.size(1) == X.size(1))))))
    fail("{}: expected targets [{}, c], [{}, {}, c] or class ids [{}], but got {} {}", file,
         X.size(0), X.size(0), X.size(1), X.size(0), c10::toString(Y.scalar_type()),
         fmt::join(Y.sizes(), "x"));
  if (has_ids) {
    if (Y.min().item<int64_t>() < 0) fail("{}: expected class ids >= 0, but got less", file);
    return torch::one_hot(Y.to(at::kLong)).to(at::kDouble);
  }
  return (Y.dim() == 3 ? Y.select(1, 0) : Y).to(at::kDouble);
}

StudentData of_files(const json& s, uint64_t seed) {
  const std::string features = s.at("features"), targets = s.at("targets");
  if (features.empty() || targets.empty())
    fail("student_teacher: expected settings features and targets for teacher=file, but got none");
  const auto X = features_in(features), Y = targets_in(targets, X);
  for (const auto& [file, array] : {std::pair(features, X), std::pair(targets, Y)})
    if (!array.isfinite().all().item<bool>())
      fail("{}: expected finite numbers, but got others", file);
  const int64_t N = X.size(0);
  const auto tested = std::clamp<int64_t>(
      std::llround(s.at("test_share").get<double>() * static_cast<double>(N)), 1, N - 1);
  const auto order = torch::tensor(SeedStream(seed, "student_teacher split").permutation(N));
  const auto train = order.slice(0, tested), test = order.slice(0, 0, tested);
  return standardised(X.index_select(0, train), Y.index_select(0, train), X.index_select(0, test),
                      Y.index_select(0, test));
}

}  // namespace

StudentData student_data(const json& settings, uint64_t seed) {
  const std::string teacher = settings.at("teacher");
  return teacher == "file" ? of_files(settings, seed)
                           : of_teacher(settings, seed, teacher == "trained");
}

}  // namespace kktorch::convex
