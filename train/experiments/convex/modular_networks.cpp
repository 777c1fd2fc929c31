#include "train/experiments/convex/modular_networks.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "ops/convex_attention.h"
#include "ops/convex_solver.h"
#include "ops/simplex_project.h"
#include "train/common/clock.h"
#include "train/experiments/context.h"
#include "train/loop/seed_stream.h"

namespace kktorch::convex {
namespace {

using at::Tensor;
using nlohmann::json;

/// One AdamW training: what differs between networks are `loss` of a batch and `evaluate`.
struct Training {
  std::vector<torch::optim::OptimizerParamGroup> groups;  ///< with their decay
  int64_t N;
  std::function<Tensor(const Tensor& rows)> loss;
  std::function<void()> after_step;
  std::function<json()> evaluate;  ///< {"train", "test"}
  std::function<void(int64_t update)> at_evaluation;
};

torch::optim::OptimizerParamGroup group_of(std::vector<Tensor> parameters, double decay) {
  auto options = std::make_unique<torch::optim::AdamWOptions>(1e-3);
  options->betas({0.9, 0.98}).eps(1e-8).weight_decay(decay);
  return {std::move(parameters), std::move(options)};
}

json run_training(const json& s, Training training, uint64_t seed) {
  const int64_t updates = s.at("updates"), every = s.at("every"), N = training.N,
                batch = std::min(s.at("batch").get<int64_t>(), N);
  auto batches = generator_of(seed, "modular batches");
  torch::optim::AdamW optimiser(training.groups);
  json log = json::array();
  Tensor order;
  int64_t at = N;
  double paused = 0;
  const auto start = Clock::now();
  for (int64_t step = 1; step <= updates; ++step) {
    if (step % 20 == 0) stop_if_interrupted();
    if (at + batch > N) {
      order = torch::randperm(N, batches, at::kLong);
      at = 0;
    }
    const auto rows = order.slice(0, at, at + batch);
    at += batch;
    for (auto& group : optimiser.param_groups())
      group.options().set_lr(1e-3 * std::min(1., static_cast<double>(step) / 10));
    const auto loss = training.loss(rows);
    optimiser.zero_grad();
    loss.backward();
    optimiser.step();
    if (training.after_step) training.after_step();
    if (step % every != 0) continue;
    const auto stopped = Clock::now();
    const torch::NoGradGuard no_grad;
    json entry = training.evaluate();
    entry["update"] = step;
    log.push_back(entry);
    if (training.at_evaluation) training.at_evaluation(step);
    paused += seconds_since(stopped);
  }
  return {{"log", log}, {"seconds", seconds_since(start) - paused}};
}

// ---- A ----

class TransformerImpl : public torch::nn::Module {
 public:
  static constexpr int64_t kWidth = 128, kHeads = 4, kLength = 6;

  TransformerImpl(int64_t vocabulary, int64_t layers) {
    embedding_ = register_module("embedding", torch::nn::Embedding(vocabulary, kWidth));
    for (int64_t l = 0; l < layers; ++l)
      layers_->push_back(torch::nn::TransformerEncoderLayer(
          torch::nn::TransformerEncoderLayerOptions(kWidth, kHeads)
              .dim_feedforward(4 * kWidth)
              .dropout(0)));
    register_module("layers", layers_);
    readout_ = register_module("readout", torch::nn::Linear(kWidth, vocabulary));
    const auto rate = torch::pow(1e4, -torch::arange(0, kWidth, 2, at::kFloat) / kWidth);
    const auto angle = torch::arange(kLength, at::kFloat).unsqueeze(1) * rate;
    position_ = torch::stack({angle.sin(), angle.cos()}, 2).view({kLength, 1, kWidth});
    mask_ = torch::full({kLength, kLength}, -INFINITY).triu(1);
  }

  /// ids [N, 6] -> logits [6, N, vocabulary].
  Tensor forward(const Tensor& ids) {
    auto x = embedding_(ids.t()) + position_;
    for (const auto& layer : *layers_)
      x = layer->as<torch::nn::TransformerEncoderLayer>()->forward(x, mask_);
    return readout_(x);
  }

 private:
  torch::nn::Embedding embedding_{nullptr};
  torch::nn::ModuleList layers_;
  torch::nn::Linear readout_{nullptr};
  Tensor position_, mask_;
};
TORCH_MODULE(Transformer);

/// EOS a / b = c (EOS); the last two are predicted from the ones before.
struct Sentences {
  Tensor inputs, targets;  ///< [N, 6], [N, 2]

  Sentences(const Equations& e, int64_t p) {
    const auto a = e.pairs.select(1, 0), b = e.pairs.select(1, 1);
    const auto of = [&](int64_t id) { return torch::full_like(a, id); };
    const int64_t end = p, divide = p + 1, equals = p + 2;
    inputs = torch::stack({of(end), a, of(divide), b, of(equals), e.answers}, 1);
    targets = torch::stack({e.answers, of(end)}, 1);
  }
};

// ---- D ----

/// Gates 1{u1_j' X_i u2_j >= 0} and weights of a layer; of the last one W1 is [h, n].
struct Block {
  Tensor W1, w2, w3, u1, u2;

  Tensor gate(const Tensor& X) const {
    return (X.detach().matmul(u2.t()) * u1.t()).sum(1).ge(0);  // [N, h]
  }
};

class Blocks {
 public:
  static constexpr int64_t kLength = 4;  // a / b =

  Blocks(const json& s, int64_t layers, bool live) : live_(live) {
    const int64_t d = s.at("block_width"), h = s.at("block_heads"), p = s.at("prime");
    const auto normal = [](at::IntArrayRef size, int64_t fan) {
      return torch::randn(size) / std::sqrt(static_cast<double>(fan));
    };
    embedding_ = torch::randn({p + 2, d});
    position_ = torch::randn({kLength, d});
    first_embedding_ = embedding_.clone();
    first_position_ = position_.clone();
    for (int64_t l = 0; l < layers; ++l) {
      const bool is_last = l + 1 == layers;
      const auto shape =
          is_last ? std::vector<int64_t>{h, kLength} : std::vector<int64_t>{h, kLength, kLength};
      blocks_.push_back({simplex_project(1. / kLength + 0.1 * torch::randn(shape)),
                         normal({h, d}, d), normal({h, is_last ? p : d}, h),
                         torch::randn({h, kLength}), torch::randn({h, d})});
    }
    for (auto* w : weights()) w->set_requires_grad(true);
    for (auto& block : blocks_) block.W1.set_requires_grad(true);
  }

  /// All that decays, and the attention weights, which do not.
  std::vector<Tensor*> weights() {
    std::vector<Tensor*> all = {&embedding_, &position_};
    for (auto& block : blocks_) {
      all.push_back(&block.w2);
      all.push_back(&block.w3);
    }
    return all;
  }
  std::vector<Tensor> attention_weights() const {
    std::vector<Tensor> all;
    for (const auto& block : blocks_) all.push_back(block.W1);
    return all;
  }
  void project() {
    const torch::NoGradGuard no_grad;
    for (auto& block : blocks_) block.W1.copy_(simplex_project(block.W1));
  }

  /// What the last layer gets: its features [N, n, d] and its gates [N, h].
  std::pair<Tensor, Tensor> last_inputs(const Tensor& ids) const {
    auto X = embed(ids, embedding_, position_);
    const auto first = live_ ? Tensor() : embed(ids, first_embedding_, first_position_);
    const auto gate = [&](const Block& block) { return block.gate(live_ ? X : first); };
    for (size_t l = 0; l + 1 < blocks_.size(); ++l) {
      const auto& block = blocks_[l];
      const auto mixed = block.W1.bmm(X.matmul(block.w2.t()).permute({2, 1, 0}));  // [h, n, N]
      X = X + (mixed.permute({2, 1, 0}) * gate(block).unsqueeze(1)).matmul(block.w3);
    }
    return {X, gate(blocks_.back())};
  }
  /// ids [N, 4] -> logits [N, p].
  Tensor logits(const Tensor& ids) const {
    const auto [X, gate] = last_inputs(ids);
    const auto& block = blocks_.back();
    return convex_attention(X, block.W1, block.w2, block.w3, gate);
  }

 private:
  static Tensor embed(const Tensor& ids, const Tensor& embedding, const Tensor& position) {
    return embedding.index_select(0, ids.flatten()).view({-1, kLength, embedding.size(1)}) +
           position;
  }

  bool live_;
  Tensor embedding_, position_, first_embedding_, first_position_;
  std::vector<Block> blocks_;
};

/// a / b =
Tensor quotients(const Equations& e, int64_t p) {
  const auto a = e.pairs.select(1, 0), b = e.pairs.select(1, 1);
  return torch::stack({a, torch::full_like(a, p), b, torch::full_like(a, p + 1)}, 1);
}

/// The gated program on what the last layer gets, for its first "refit_gates" gates.
json refit(const json& s, const Blocks& model, const Split& split, int64_t update) {
  const int64_t p = s.at("prime"), P = s.at("refit_gates");
  const auto inputs = [&](const Equations& e) {
    const auto [X, gate] = model.last_inputs(quotients(e, p));
    return std::pair(X.to(at::kDouble).contiguous(), gate.slice(1, 0, P).contiguous());
  };
  const auto [X, gate] = inputs(split.train);
  const auto [test_X, test_gate] = inputs(split.test);
  ConvexOptions options;
  options.loss = "cross_entropy";
  options.classes = p;
  options.gate = gate;
  options.tol_rel = s.at("tolerance");
  options.max_iter = s.at("refit_iterations");
  options.progress = unless_interrupted;
  const auto& Y = split.train.answers;
  const double rho = s.at("rhos").back();
  const auto start = Clock::now();
  const auto r = solve(X, Y, rho * beta_max(X, Y, options), options);
  const auto share = [&](const Tensor& features, const Tensor& open, const Tensor& answers) {
    return accuracy(answers, [&](int64_t first, int64_t end) {
      return convex_predict(features.slice(0, first, end), r.Z, open.slice(0, first, end));
    });
  };
  return {{"update", update},           {"seconds", seconds_since(start)},
          {"train", share(X, gate, Y)}, {"test", share(test_X, test_gate, split.test.answers)},
          {"gap", r.gap / r.F},         {"status", r.status}};
}

}  // namespace

json train_transformer(const json& s, const Split& split, int64_t layers, double decay,
                       uint64_t seed) {
  const int64_t p = s.at("prime");
  seed_torch(seed, "modular baseline");
  Transformer model(p + 3, layers);
  const Sentences train(split.train, p), test(split.test, p);
  const auto share = [&](const Sentences& sentences) {
    return accuracy(sentences.targets.select(1, 0), [&](int64_t first, int64_t end) {
      return model(sentences.inputs.slice(0, first, end))[4];
    });
  };
  return run_training(
      s,
      {.groups = {group_of(model->parameters(), decay)},
       .N = train.inputs.size(0),
       .loss =
           [&](const Tensor& rows) {
             const auto logits = model(train.inputs.index_select(0, rows)).slice(0, 4);
             return torch::nn::functional::cross_entropy(
                 logits.flatten(0, 1), train.targets.index_select(0, rows).t().flatten());
           },
       .after_step = {},
       .evaluate =
           [&] {
             return json{{"train", share(train)}, {"test", share(test)}};
           },
       .at_evaluation = {}},
      seed);
}

json train_blocks(const json& s, const Split& split, int64_t layers, double decay,
                  const std::string& gates, uint64_t seed) {
  const int64_t p = s.at("prime");
  seed_torch(seed, "modular blocks");
  Blocks model(s, layers, gates == "live");
  const auto train = quotients(split.train, p), test = quotients(split.test, p);
  const auto share = [&](const Tensor& ids, const Tensor& answers) {
    return accuracy(answers, [&](int64_t first, int64_t end) {
      return model.logits(ids.slice(0, first, end));
    });
  };
  std::vector<Tensor> weights;
  for (auto* w : model.weights()) weights.push_back(*w);
  json refits = json::array();
  const int64_t evaluations = s.at("updates").get<int64_t>() / s.at("every").get<int64_t>();
  const int64_t between =
      std::max<int64_t>(1, evaluations / std::max<int64_t>(1, s.at("refits").get<int64_t>()));
  int64_t evaluation = 0;
  auto result = run_training(
      s,
      {.groups = {group_of(weights, decay), group_of(model.attention_weights(), 0)},
       .N = train.size(0),
       .loss =
           [&](const Tensor& rows) {
             return torch::nn::functional::cross_entropy(model.logits(train.index_select(0, rows)),
                                                         split.train.answers.index_select(0, rows));
           },
       .after_step = [&] { model.project(); },
       .evaluate =
           [&] {
             return json{{"train", share(train, split.train.answers)},
                         {"test", share(test, split.test.answers)}};
           },
       .at_evaluation =
           [&](int64_t update) {
             if (++evaluation % between == 0) refits.push_back(refit(s, model, split, update));
           }},
      seed);
  result["refits"] = refits;
  return result;
}

}  // namespace kktorch::convex
