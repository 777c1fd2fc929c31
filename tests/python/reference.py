"""Attention-BN from its definition, one query at a time.

Written from the formula alone and kept naive: no folding, no shift, no shared statistics, no
batching. Run on float64 tensors it is the truth the op is measured against; run on half tensors it
is the literal evaluation in that dtype, whose error the op is allowed to double.
"""

from itertools import product

import torch


def attention_bn(
    query,
    key,
    value,
    beta=None,
    key_padding_mask=None,
    attn_mask=None,
    *,
    key_weight=None,
    beta_value=1.0,
    use_std=True,
    eps=1e-5,
    stats="auto",
    is_causal=False,
    query_offset=None,
    scale=None,
    enable_gqa=False,
    dropout=None,
):
    """The arguments of the op, except `dropout`: None or the factors Z [B, H, M, N] on P."""
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1:3]
    assert enable_gqa or heads == kv_heads
    stats = {"auto": "prefix" if is_causal else "global"}.get(stats, stats)
    scale = width**-0.5 if scale is None else scale
    offset = query_offset or 0
    position = torch.arange(keys)
    weight = query.new_ones(batch, keys) if key_weight is None else key_weight.to(query.dtype)
    if key_padding_mask is not None:
        weight = weight.masked_fill(key_padding_mask, 0)
    bias = _additive(attn_mask, query.dtype).expand(batch, heads, queries, keys)
    if beta is None:
        beta = torch.tensor(beta_value, dtype=query.dtype)
    beta = beta.to(query.dtype).reshape(-1).expand(heads)

    rows = []
    for b, h, i in product(range(batch), range(heads), range(queries)):
        valid = weight[b] > 0
        past = valid & (position <= offset + i) if is_causal else valid
        visible = past & (bias[b, h, i] != -torch.inf)
        counted = {"global": valid, "prefix": past, "support": visible}[stats]
        if not visible.any():
            rows.append(value.new_zeros(value.shape[3]))
            continue
        k, v = key[b, h * kv_heads // heads], value[b, h * kv_heads // heads]
        mean, r = _statistics(k[counted], weight[b, counted], use_std, eps)
        centre = beta[h] * mean
        logits = scale * (((k[visible] - centre) * r) @ ((query[b, h, i] - centre) * r))
        p = torch.softmax(logits + weight[b, visible].log() + bias[b, h, i, visible], 0)
        rows.append((p if dropout is None else p * dropout[b, h, i, visible]) @ v[visible])
    out = torch.stack(rows) if rows else value.new_zeros(0)
    return out.reshape(batch, heads, queries, value.shape[3])


def _additive(mask, dtype):
    if mask is None:
        return torch.zeros((), dtype=dtype)
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    return mask.to(dtype)


def _statistics(k, n, use_std, eps):
    """Weighted mean [D] and 1 / sqrt(biased variance + eps) [D], 0 where that is 1 / 0."""
    n = n[:, None]
    mean = (n * k).sum(0) / n.sum()
    if not use_std:
        return mean, torch.ones_like(mean)
    floored = (n * (k - mean) ** 2).sum(0) / n.sum() + eps
    dead = floored == 0
    return mean, floored.masked_fill(dead, 1).rsqrt().masked_fill(dead, 0)


def attention_bn_unmasked(query, key, value, beta, eps=1e-5):
    """The same formula for all rows at once: no options, H = Hk, a fixed beta."""
    mean = key.mean(2, keepdim=True)
    r = (((key - mean) ** 2).mean(2, keepdim=True) + eps).rsqrt()
    logits = ((query - beta * mean) * r) @ ((key - beta * mean) * r).mT
    return torch.softmax(logits * query.shape[3] ** -0.5, -1) @ value
