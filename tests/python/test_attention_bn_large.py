"""Offsets beyond 32 bits: more than 2^31 elements in keys and values. Needs 20 GiB of memory.

python -m pytest -m slow tests/python/test_attention_bn_large.py
"""

from pathlib import Path

import kktorch
import pytest
import torch

pytestmark = pytest.mark.slow

HEADS, WIDTH, QUERIES = 64, 64, 4
KEYS = 2**31 // (HEADS * WIDTH) + 12


def available_gib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return int(kib) / 2**20


@pytest.mark.skipif(available_gib() < 20, reason="needs 20 GiB of memory")
@pytest.mark.parametrize("heads_last", [True, False])
def test_the_last_keys_are_read_and_get_their_gradients(heads_last):
    def zeros():
        shape = (1, KEYS, HEADS, WIDTH) if heads_last else (1, HEADS, KEYS, WIDTH)
        t = torch.zeros(shape, dtype=torch.bfloat16)
        return t.transpose(1, 2) if heads_last else t

    torch.manual_seed(0)
    key, value = zeros(), zeros()
    assert key.numel() > 2**31
    # Every head attends to its last key alone: its logit is 64, those of the others are 0.
    key[:, :, -1] = 1
    value[:, :, -1] = torch.randn(HEADS, WIDTH).bfloat16()
    query = torch.full((1, HEADS, QUERIES, WIDTH), 8.0).bfloat16().requires_grad_()
    key.requires_grad_()
    value.requires_grad_()
    out = kktorch.attention_bn(query, key, value, beta_value=0.0, use_std=False)
    expected = value[:, :, -1:].detach().expand_as(out)
    assert torch.allclose(out.detach().float(), expected.float(), atol=1e-2)
    out.sum().backward()
    # All of the probability lies on the last key.
    assert torch.allclose(value.grad[:, :, -1].float(), torch.tensor(float(QUERIES)), rtol=1e-2)
    others = value.grad[:, :, :-1]
    assert -1e-6 < others.amin() and others.amax() < 1e-6
    assert key.grad[:, :, -1].isfinite().all()
