"""Incremental decoding with heads that pool.

A new token at position p sees, as in the causal Attention-SH, the special tokens up to p, the
windows that end before its own begins, and, one by one, the tokens of its own window up to p. With
Attention-BN its query is normalised by the statistics of the raw keys up to p, which leaves softmax
attention to that list of tokens and windows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kktorch.nn._head_groups import head_places, merge_heads, take_heads
from kktorch.nn.kv_cache import KVCache, KVCacheGroup


def decode_pooled(layer, query: Tensor, key: Tensor, value: Tensor, cache: KVCache) -> Tensor:
    """The next T tokens of sequences that are all at one position.

    Args:
        layer: AttentionBNSH of variant sh or bnsh.
        query: [B, H, T, D].
        key: [B, Hk, T, D].
        value: [B, Hk, T, Dv].
        cache: advances, except for lengths.

    Returns:
        [B, H, T, Dv].
    """
    shared = layer.queries_per_key
    if layer.normalises:
        query = _normalise_queries(layer, query, key, cache)
    parts = []
    for group in cache.groups:
        new = [take_heads(t, 1, group.heads, n) for t, n in ((query, shared), (key, 1), (value, 1))]
        parts.append(_attend_to_group(layer, *new, cache, group))
    cache.length.add_(key.size(2))
    return merge_heads(parts, head_places([group.heads for group in cache.groups]), shared)


# ---- Attention-BN: running statistics sit in the query -----------------------------------------


def _prefix_statistics(key: Tensor, cache: KVCache) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and sum of squared deviations [B, Hk, T, D] and number [T, 1] of the keys up to each
    new one, in float64: sums over the chunk, shifted by the mean so far, merged with the state
    (Chan)."""
    before = cache.lengths[0]
    shift = (cache.mean if before > 0 else key[:, :, 0]).double().unsqueeze(2)
    x = key.double() - shift
    n = torch.arange(1, key.size(2) + 1, dtype=x.dtype, device=x.device).unsqueeze(1)
    total = x.cumsum(2)
    mean = total / n
    m2 = (x.square().cumsum(2) - total * mean).clamp_min(0)
    count = n + before
    m2 = cache.m2.double().unsqueeze(2) + m2 + mean.square() * (before * n / count)
    return shift + mean * (n / count), m2, count


def _normalise_queries(layer, query: Tensor, key: Tensor, cache: KVCache) -> Tensor:
    """(q - beta mu) / (sigma2 + eps) with the statistics at every new token, in the accumulation
    type; the state advances."""
    mean, m2, count = _prefix_statistics(key, cache)
    cache.mean.copy_(mean[:, :, -1])
    cache.m2.copy_(m2[:, :, -1])

    acc, shared = cache.mean.dtype, layer.queries_per_key
    beta = layer.beta_init if layer.beta is None else layer.beta.to(acc).reshape(-1, 1, 1)
    query = query.to(acc) - beta * mean.to(acc).repeat_interleave(shared, 1)
    if not layer.use_std:
        return query
    floor = m2 / count + layer.eps
    return query * floor.reciprocal().masked_fill(floor == 0, 0).to(acc).repeat_interleave(
        shared, 1
    )


# ---- Attention-SH: a list of tokens and windows -------------------------------------------------


@dataclass
class _Chunk:
    """The new tokens at positions begin ... end - 1, and the windows of one scale."""

    scale: int
    special: int
    begin: int
    end: int

    def __post_init__(self) -> None:
        self.old_windows = self._windows_before(self.begin)
        self.new_windows = self._windows_before(self.end) - self.old_windows
        # First token that is seen one by one: that of the window in progress.
        in_progress = self.special + self.old_windows * self.scale
        self.first_raw = self.begin if self.begin < self.special else in_progress
        # Entries of the cache: special tokens, then windows.
        self.cached = min(self.begin, self.special) + self.old_windows
        # Tokens of the window in progress after the chunk.
        self.tail = max(self.end - self.special, 0) % self.scale

    def _windows_before(self, position: int) -> int:
        return max(position - self.special, 0) // self.scale


def _attend_to_group(
    layer, query: Tensor, key: Tensor, value: Tensor, cache: KVCache, group: KVCacheGroup
) -> Tensor:
    begin = cache.lengths[0]
    chunk = _Chunk(group.scale, cache.num_special, begin, begin + key.size(2))
    keys = _list_entries(chunk, key, group.key, group.key_tail).to(query.dtype)
    values = _list_entries(chunk, value, group.value, group.value_tail).to(query.dtype)
    return torch.ops.kktorch.attention_bn(
        query,
        keys,
        values,
        attn_mask=_visible_entries(chunk, query.device),
        key_weight=_entry_weights(chunk, keys) if layer.count_weighting else None,
        beta_value=0.0,
        use_std=False,
        enable_gqa=layer.queries_per_key > 1,
    ).to(value.dtype)


def _list_entries(c: _Chunk, tokens: Tensor, cache: Tensor, tail: Tensor) -> Tensor:
    """Keys, or values, that the new tokens see: entries of the cache, raw tokens, windows that end
    inside the chunk; written back to the cache and its tail."""
    raw = torch.cat([tail[:, :, : c.begin - c.first_raw], tokens], 2)
    first = c.special + c.old_windows * c.scale - c.first_raw
    windows = raw[:, :, first : first + c.new_windows * c.scale]
    windows = windows.unflatten(2, (c.new_windows, c.scale)).mean(3)
    entries = torch.cat([cache[:, :, : c.cached], raw, windows], 2)

    special, finished = cache[:, :, c.begin : min(c.special, c.end)], c.special + c.old_windows
    special.copy_(tokens[:, :, : special.size(2)])
    cache[:, :, finished : finished + c.new_windows].copy_(windows)
    tail[:, :, : c.tail].copy_(raw[:, :, raw.size(2) - c.tail :])
    return entries


def _visible_entries(c: _Chunk, device: torch.device) -> Tensor:
    """What each new token sees of the entries, bool [T, entries]."""
    query = torch.arange(c.begin, c.end, device=device).unsqueeze(1)
    token = torch.arange(c.first_raw, c.end, device=device)
    window = torch.arange(c.new_windows, device=device) + c.old_windows
    of_query, of_token = (query - c.special) // c.scale, (token - c.special) // c.scale
    cached = torch.ones(c.end - c.begin, c.cached, dtype=torch.bool, device=device)
    own = (token < c.special) | (of_token == of_query)
    return torch.cat([cached, own & (token <= query), window < of_query], 1)


def _entry_weights(c: _Chunk, keys: Tensor) -> Tensor:
    """The number of tokens of every entry, [B, entries]."""
    parts = [
        keys.new_ones(min(c.begin, c.special)),
        keys.new_full((c.old_windows,), c.scale),
        keys.new_ones(c.end - c.first_raw),
        keys.new_full((c.new_windows,), c.scale),
    ]
    return torch.cat(parts).expand(keys.size(0), -1)
