"""The ops as Python functions, with the documentation that ``torch.ops.kktorch`` cannot carry.

Shapes: B batch, H query heads, Hk key/value heads, M queries, N keys, D width, Dv value width.
"""

import torch
from torch import Tensor


def attention_bn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    *,
    key_weight: Tensor | None = None,
    beta_value: float = 1.0,
    use_std: bool = True,
    eps: float = 1e-5,
    stats: str = "auto",
    is_causal: bool = False,
    query_offset: int | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention-BN: softmax attention with keys normalised over the sequence.

    With the mean ``mu`` and the biased variance ``var`` of the keys of each sample, head, channel::

        L[i, j] = scale * sum_d (q[i, d] - beta mu[d]) (k[j, d] - beta mu[d]) / (var[d] + eps)
        o[i]    = sum_j softmax_j(L[i, :])[j] v[j]

    (arXiv 2406.13781, section 3.2.) Computed in its folded form, softmax attention of
    ``(q - beta mu) / (var + eps)`` on centred keys, which is the same function. There are no batch
    statistics and no running averages: training and evaluation are identical.

    Args:
        query: [B, H, M, D]; float16, bfloat16, float32 or float64, any strides.
        key: [B, Hk, N, D], dtype and device of ``query``.
        value: [B, Hk, N, Dv], dtype and device of ``query``.
        beta: re-centring strength, [], [1] or [H], any floating dtype, differentiable.
        key_padding_mask: [B, N] bool, True = ignore the key. What it hides may be NaN.
        attn_mask: bool (True = may attend) or floating (added to the scaled logits), [M, N] or
            [B|1, H|1, M, N].
        key_weight: [B, N] floating >= 0; a key of weight 3 counts like three equal keys. Not
            differentiable.
        beta_value: re-centring strength where ``beta`` is None.
        use_std: divide by the standard deviation; False: only re-centre.
        eps: variance floor, >= 0.
        stats: keys that enter mean and variance: "global" (all valid ones), "prefix" (up to the
            query's position; needs ``is_causal``), "support" (those the row may attend), "auto"
            (prefix if ``is_causal``, else global).
        is_causal: query i sees keys at positions <= ``query_offset`` + i.
        query_offset: position of query 0; None (0) only if M = N or not ``is_causal``.
        dropout_p: dropout on the attention probabilities, 0 <= p < 1.
        scale: default 1/sqrt(D).
        enable_gqa: allow H to be a multiple of Hk.

    Returns:
        [B, H, M, Dv] in the input dtype. A row that sees no key is 0.

    Raises:
        RuntimeError, ValueError: "attention_bn: expected <what>, but got <values>".
        NotImplementedError: double backward; use :func:`attention_bn_ref`.
    """
    return torch.ops.kktorch.attention_bn(
        query,
        key,
        value,
        beta,
        key_padding_mask,
        attn_mask,
        key_weight=key_weight,
        beta_value=beta_value,
        use_std=use_std,
        eps=eps,
        stats=stats,
        is_causal=is_causal,
        query_offset=query_offset,
        dropout_p=dropout_p,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def attention_bn_ref(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    *,
    literal: bool = False,
    **options,
) -> Tensor:
    """The executable specification of :func:`attention_bn`: same arguments, errors and result.

    A composition of differentiable ATen operations that materialises the M x N probabilities. It
    supports what the fast op refuses: double backward, forward-mode AD and vmap.

    Args:
        literal: evaluate the formula as it stands instead of its folded form.
        options: the keyword arguments of :func:`attention_bn`.
    """
    return torch.ops.kktorch.attention_bn_ref(
        query, key, value, beta, key_padding_mask, attn_mask, literal=literal, **options
    )


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    *,
    key_weight: Tensor | None = None,
    bn: bool = True,
    beta_value: float = 1.0,
    use_std: bool = True,
    eps: float = 1e-5,
    feature_map: str = "elu1",
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """Linear attention and its normalised form, Linear Attention-BN.

    With ``phi(x) = elu(x) + 1`` and the mean ``mu`` and biased variance ``var`` of the keys of each
    sample, head, channel::

        q^, k^ = (q - beta mu) / sqrt(var + eps), (k - beta mu) / sqrt(var + eps)
        o[i]   = sum_j phi(q^[i]) . phi(k^[j]) v[j] / sum_j phi(q^[i]) . phi(k^[j])

    (arXiv 2406.13781, section 3.) Time and memory are linear in the lengths.

    Args:
        query: [B, H, M, D]; float16, bfloat16, float32 or float64, any strides.
        key: [B, Hk, N, D], dtype and device of ``query``.
        value: [B, Hk, N, Dv], dtype and device of ``query``.
        beta: re-centring strength, [], [1] or [Hk] (it acts on the keys too), any floating dtype,
            differentiable.
        key_padding_mask: [B, N] bool, True = ignore the key. What it hides may be NaN.
        key_weight: [B, N] floating >= 0; a key of weight 3 counts like three equal keys. Not
            differentiable.
        bn: False: q^ = q, k^ = k; ``beta``, ``use_std`` and ``eps`` are ignored.
        beta_value: re-centring strength where ``beta`` is None.
        use_std: divide by the standard deviation; False: only re-centre.
        eps: variance floor, >= 0.
        feature_map: "elu1".
        is_causal: query i sees keys 0 ... i (M = N); key j is normalised by the statistics of the
            keys up to j, query i by those up to i.
        enable_gqa: allow H to be a multiple of Hk.

    Returns:
        [B, H, M, Dv] in the input dtype. A row that sees no key is 0.

    Raises:
        RuntimeError, ValueError: "linear_attention: expected <what>, but got <values>".
    """
    return torch.ops.kktorch.linear_attention(
        query,
        key,
        value,
        beta,
        key_padding_mask,
        key_weight=key_weight,
        bn=bn,
        beta_value=beta_value,
        use_std=use_std,
        eps=eps,
        feature_map=feature_map,
        is_causal=is_causal,
        enable_gqa=enable_gqa,
    )


def local_window_mask(
    M: int, N: int, width: int, num_global: int = 0, device: torch.device | None = None
) -> Tensor:
    """Sliding window for the ``attn_mask`` of an attention op: bool [M, N], True = may attend.

    Query i sees the keys j with ``|i - j| <= width``; the first ``num_global`` tokens see all and
    are seen by all.
    """
    if min(M, N, width, num_global) < 0:
        raise ValueError(
            "local_window_mask: expected M, N, width, num_global >= 0, "
            f"but got {M}, {N}, {width}, {num_global}"
        )
    i, j = torch.arange(M, device=device)[:, None], torch.arange(N, device=device)
    return ((i - j).abs() <= width) | (i < num_global) | (j < num_global)
