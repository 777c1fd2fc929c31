"""Linear attention from its definition, one query at a time, and the inputs of its tests.

The definition is the O(M N) kernel form: no sums over keys shared by queries, no shift, no chunks.
"""

from itertools import product

import torch
from attention_bn_cases import BETA_KINDS, DEFAULT, MASKS

op = torch.ops.kktorch.linear_attention

# What may differ about the keys that a query sees: the names are the test ids.
MASK_NAMES = ("none", "padding", "weight", "both")
FORMS = {"global": {}, "causal": {"is_causal": True}}


def definition(
    query,
    key,
    value,
    beta=None,
    key_padding_mask=None,
    *,
    key_weight=None,
    bn=True,
    beta_value=1.0,
    use_std=True,
    eps=1e-5,
    is_causal=False,
    enable_gqa=False,
):
    """The arguments of the op."""
    (batch, heads, queries, _), (kv_heads, keys) = query.shape, key.shape[1:3]
    assert enable_gqa or heads == kv_heads
    weight = query.new_ones(batch, keys) if key_weight is None else key_weight.to(query.dtype)
    if key_padding_mask is not None:
        weight = weight.masked_fill(key_padding_mask, 0)
    if beta is None:
        beta = torch.tensor(beta_value, dtype=query.dtype)
    beta = beta.to(query.dtype).reshape(-1).expand(kv_heads)

    rows = []
    for b, h, i in product(range(batch), range(heads), range(queries)):
        kv_head = h * kv_heads // heads
        k, v, n = key[b, kv_head], value[b, kv_head], weight[b]

        def normalise(x, position, k=k, n=n, beta=beta[kv_head]):
            counted = _seen(n, position if is_causal else None)
            return _normalised(x, k[counted], n[counted], beta, use_std, eps) if bn else x

        seen = _seen(n, i if is_causal else None).nonzero().flatten().tolist()
        if len(seen) < 2:  # a mean of one value, even where its weight is too small a number
            rows.append(v[seen].sum(0))
            continue
        phi_q = phi(normalise(query[b, h, i], i))
        kernel = torch.stack([n[j] * (phi_q @ phi(normalise(k[j], j))) for j in seen])
        rows.append(kernel @ v[seen] / kernel.sum().clamp_min(torch.finfo(v.dtype).tiny))
    out = torch.stack(rows) if rows else value.new_zeros(0)
    return out.reshape(batch, heads, queries, value.shape[3])


def phi(x):
    """elu(x) + 1 without the rounding of e^x - 1 + 1."""
    return torch.where(x > 0, x + 1, x.clamp_max(0).exp())


def _seen(weight, last):
    """Keys that count, up to position `last`."""
    valid = weight > 0
    return valid if last is None else valid & (torch.arange(len(weight)) <= last)


def _normalised(x, k, n, beta, use_std, eps):
    n = n[:, None] / n.sum()
    mean = (n * k).sum(0)
    if not use_std:
        return x - beta * mean
    floored = (n * (k - mean) ** 2).sum(0) + eps
    dead = floored == 0
    return (x - beta * mean) * floored.masked_fill(dead, 1).rsqrt().masked_fill(dead, 0)


def problem(shape=DEFAULT, form="global", mask="none", beta=("[H]", 0.7), seed=0, **options):
    """(query, key, value) in float64 and the options of one problem; causal: M becomes N."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    queries = shape.N if form == "causal" else shape.M
    tensors = (
        draw(shape.B, shape.H, queries, shape.D),
        draw(shape.B, shape.Hk, shape.N, shape.D) + 0.5,
        draw(shape.B, shape.Hk, shape.N, shape.Dv),
    )
    masks = ("padding", "weight") if mask == "both" else (mask,)
    kind, strength = beta
    options = BETA_KINDS[kind](strength, shape.Hk) | FORMS[form] | options
    for name in masks:
        options |= MASKS[name](generator, shape)
    if shape.H != shape.Hk:
        options["enable_gqa"] = True
    return tensors, options
