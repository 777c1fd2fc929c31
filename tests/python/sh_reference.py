"""Pooling in windows and Attention-SH from their definitions, windows listed token by token.

Written from the formulas alone, one sample, head and query at a time, and kept naive. Run on
float64 tensors they are the truth the ops are measured against; run on half tensors they are the
literal evaluation in that dtype, whose error the ops are allowed to double.
"""

from itertools import product

import reference
import torch


def windows(length, window, tail="ceil", num_special=0):
    """The tokens of every window, in order."""
    special = [[j] for j in range(num_special)]
    starts = range(num_special, length, window)
    pooled = [list(range(start, min(start + window, length))) for start in starts]
    return special + [w for w in pooled if tail == "ceil" or len(w) == window]


def causal_windows(length, window, tail, num_special, position):
    """What a query at `position` sees: finished windows, and its own token by token."""
    if position < num_special:
        return [[j] for j in range(position + 1)]
    begin = num_special + (position - num_special) // window * window
    finished = windows(min(begin, length), window, tail, num_special)
    return finished + [[j] for j in range(begin, min(position + 1, length))]


def token_pool(input, window, key_padding_mask=None, *, mode="avg", tail="ceil", num_special=0):
    """The arguments of the op: (pooled, count)."""
    batch, length = input.shape[0], input.shape[-2]
    padding = _padding(key_padding_mask, batch, length)
    tokens = windows(length, window, tail, num_special)
    pooled = input.new_zeros(*input.shape[:-2], len(tokens), input.shape[-1])
    count = torch.zeros(batch, len(tokens))
    for b, w in product(range(batch), range(len(tokens))):
        valid = [j for j in tokens[w] if not padding[b][j]]
        count[b, w] = len(valid)
        if valid:
            chosen = input[b][..., valid, :]
            pooled[b][..., w, :] = chosen.mean(-2) if mode == "avg" else chosen.amax(-2)
    return pooled, count


def attention_sh(
    query,
    key,
    value,
    scales,
    beta=None,
    key_padding_mask=None,
    attn_mask=None,
    *,
    bn=False,
    count_weighting=False,
    tail="ceil",
    num_special=0,
    beta_value=1.0,
    use_std=True,
    eps=1e-5,
    is_causal=False,
    query_offset=None,
    scale=None,
    enable_gqa=False,
    dropout=None,
):
    """The arguments of the op, except `dropout`: None or the factors Z [B, H, M, window] on P."""
    batch, heads, queries, width = query.shape
    kv_heads, length = key.shape[1:3]
    assert enable_gqa or heads == kv_heads
    assert len(scales) in (1, kv_heads)
    scale = width**-0.5 if scale is None else scale
    padding = _padding(key_padding_mask, batch, length)
    bias = reference._additive(attn_mask, query.dtype).expand(batch, heads, queries, length)
    forbidden = (bias == -torch.inf).tolist()
    beta = torch.tensor(beta_value, dtype=query.dtype) if beta is None else beta
    beta = beta.to(query.dtype).reshape(-1).expand(heads)

    rows = []
    for b, h, i in product(range(batch), range(heads), range(queries)):
        head = h * kv_heads // heads
        k, v, window = key[b, head], value[b, head], scales[head % len(scales)]
        position = (query_offset or 0) + i
        if is_causal:
            samples = causal_windows(length, window, tail, num_special, position)
            counted = [[j] for j in range(min(position + 1, length)) if not padding[b][j]]
        else:
            samples = windows(length, window, tail, num_special)
        samples = [[j for j in tokens if not padding[b][j]] for tokens in samples]
        if not is_causal:
            counted = [tokens for tokens in samples if tokens]
        seen = [
            w
            for w, tokens in enumerate(samples)
            if tokens and not any(forbidden[b][h][i][j] for j in tokens)
        ]
        if not seen:
            rows.append(value.new_zeros(value.shape[3]))
            continue
        centre, r = 0.0, 1.0
        if bn:
            weight = _weights(counted, count_weighting, k.dtype)
            mean, r = reference._statistics(_means(k, counted), weight, use_std, eps)
            centre = beta[h] * mean
        visible = [samples[w] for w in seen]
        logits = scale * (((_means(k, visible) - centre) * r) @ ((query[b, h, i] - centre) * r))
        # a boolean mask adds 0 to what is seen, and with a float mask every window is one token
        logits = logits + bias[b, h, i, [tokens[0] for tokens in visible]]
        p = torch.softmax(logits + _weights(visible, count_weighting, k.dtype).log(), 0)
        rows.append((p if dropout is None else p * dropout[b, h, i, seen]) @ _means(v, visible))
    out = torch.stack(rows) if rows else value.new_zeros(0)
    return out.reshape(batch, heads, queries, value.shape[3])


def _padding(key_padding_mask, batch, length):
    if key_padding_mask is None:
        return [[False] * length] * batch
    return key_padding_mask.tolist()


def _means(x, samples):
    return torch.stack([x[tokens].mean(0) for tokens in samples])


def _weights(samples, count_weighting, dtype):
    return torch.tensor([len(t) if count_weighting else 1 for t in samples], dtype=dtype)
