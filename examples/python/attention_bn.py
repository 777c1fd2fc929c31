"""Attention-BN in PyTorch: the op, its gradient, and a layer that is trained for a moment.

PYTHONPATH=python python examples/python/attention_bn.py
"""

import kktorch
import torch

torch.manual_seed(0)

# The op: batch 2, 4 heads, 10 tokens, width 16 per head; it equals its specification.
q, k, v = (torch.randn(2, 4, 10, 16, requires_grad=True) for _ in range(3))
out = kktorch.attention_bn(q, k, v)
print("op - reference:", (out - kktorch.attention_bn_ref(q, k, v)).abs().max().item())
print("dk:", torch.autograd.grad(out.square().sum(), k)[0].shape)

# A layer with a learned re-centring strength per head: reproduce the first token in every place.
layer = kktorch.nn.AttentionBNSH(64, 4, batch_first=True, variant="bn", beta_mode="per_head")
optimiser = torch.optim.AdamW(layer.parameters(), lr=3e-3)
x = torch.randn(32, 10, 64)
for step in range(101):
    loss = (layer(x, x, x)[0] - x[:, :1]).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if step % 50 == 0:
        print(f"step {step:3}  loss {loss.item():.4f}  beta {layer.beta.tolist()}")
