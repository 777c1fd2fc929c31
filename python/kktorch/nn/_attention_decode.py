"""AttentionBNSH.decode: heads that pool have a composition, the others leave it to the op."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kktorch.nn._scaled_decode import decode_pooled
from kktorch.nn.kv_cache import KVCache


def check_decodes(layer) -> None:
    """Decoding serves the softmax family without convolution."""
    expected = "AttentionBNSH: expected "
    if layer.is_linear:
        raise NotImplementedError(
            f"{expected}variant in {{softmax, bn, sh, bnsh}} to decode, but got '{layer.variant}'"
        )
    if layer.conv != "none":
        raise NotImplementedError(f"{expected}conv 'none' to decode, but got '{layer.conv}'")


@torch.no_grad()
def decode(layer, x_new: Tensor, cache: KVCache, valid: Sequence[int] | None) -> Tensor:
    """See AttentionBNSH.decode."""
    check_decodes(layer)
    layer._check_inputs(x_new, x_new, x_new, None, None, True)
    x = layer._batch_first(x_new)
    if x_new.dim() != 3 or x.size(0) != cache.batch or x.size(1) < 1:
        raise RuntimeError(
            f"AttentionBNSH: expected x_new of 3 dimensions, a batch of {cache.batch} as the "
            f"cache, and one token or more, but got {list(x_new.shape)}"
        )
    batch, new = x.size(0), x.size(1)
    counts = [new] * batch if valid is None else list(valid)
    if len(counts) != batch or any(not 0 <= n <= new for n in counts):
        raise RuntimeError(
            f"AttentionBNSH: expected {batch} numbers of valid tokens in 0 ... {new}, "
            f"but got {counts}"
        )
    cache.check_room(counts)

    heads = layer._project(x, x, x)
    # The op wants chunks of one length, pooling also one position for all sequences.
    if set(counts) == {new} and (not layer.pools or len(set(cache.lengths)) == 1):
        attended = _decode_heads(layer, heads, cache)
    else:
        attended = _decode_ragged(layer, heads, cache, counts)
    cache.advance(counts)
    out = layer.out_proj(attended.transpose(1, 2).flatten(2))
    return out if layer.batch_first else out.transpose(0, 1)


def _decode_heads(layer, heads: tuple[Tensor, Tensor, Tensor], cache: KVCache) -> Tensor:
    """A chunk of one length for all of ``cache``, which advances except for lengths."""
    if layer.pools:
        return decode_pooled(layer, *heads, cache)
    tokens = cache.groups[0]
    return torch.ops.kktorch.attention_bn_decode(
        *heads,
        tokens.key,
        tokens.value,
        cache.length,
        cache.mean,
        cache.m2,
        None if layer.beta is None else layer.beta.detach(),
        beta_value=layer._beta_value(),
        use_std=layer.normalises and layer.use_std,
        eps=layer.eps,
        enable_gqa=layer.queries_per_key > 1,
    )


def _decode_ragged(
    layer, heads: tuple[Tensor, Tensor, Tensor], cache: KVCache, counts: list[int]
) -> Tensor:
    query = heads[0]
    out = query.new_zeros(query.size(0), query.size(1), query.size(2), layer.value_head_dim)
    for b, count in enumerate(counts):
        if count > 0:
            own = tuple(t[b : b + 1, :, :count] for t in heads)
            out[b : b + 1, :, :count] = _decode_heads(layer, own, cache.sample(b))
    return out
