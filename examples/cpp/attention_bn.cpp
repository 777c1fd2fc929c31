// Attention-BN in C++: the op, its gradient, and a layer that is trained for a moment.
#include "ops/attention_bn.h"

#include <torch/torch.h>

#include <iostream>

#include "models/attention_bnsh.h"

int main() {
  torch::manual_seed(0);

  // The op: batch 2, 4 heads, 10 tokens, width 16 per head; it equals its specification.
  const auto q = torch::randn({2, 4, 10, 16}, torch::requires_grad());
  const auto k = torch::randn({2, 4, 10, 16}, torch::requires_grad());
  const auto v = torch::randn({2, 4, 10, 16}, torch::requires_grad());
  const auto out = kktorch::attention_bn(q, k, v);
  const auto error = (out - kktorch::attention_bn_ref(q, k, v)).abs().max().item<float>();
  std::cout << "op - reference: " << error << '\n';
  std::cout << "dk: " << torch::autograd::grad({out.square().sum()}, {k})[0].sizes() << '\n';

  // A layer with a learned re-centring strength per head: reproduce the first token in every place.
  kktorch::AttentionBNSH layer(kktorch::AttentionBNSHOptions{.embed_dim = 64,
                                                             .num_heads = 4,
                                                             .batch_first = true,
                                                             .variant = "bn",
                                                             .beta_mode = "per_head"});
  torch::optim::AdamW optimiser(layer->parameters(), torch::optim::AdamWOptions(3e-3));
  const auto x = torch::randn({32, 10, 64});
  for (int step = 0; step <= 100; ++step) {
    const auto y = std::get<0>(layer->forward(x, x, x));
    const auto loss = (y - x.narrow(1, 0, 1)).square().mean();
    optimiser.zero_grad();
    loss.backward();
    optimiser.step();
    if (step % 50 == 0) std::cout << "step " << step << "  loss " << loss.item<float>() << '\n';
  }
}
