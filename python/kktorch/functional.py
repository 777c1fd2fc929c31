"""The ops as Python functions, with the documentation that ``torch.ops.kktorch`` cannot carry.

Shapes: B batch, H query heads, Hk key/value heads, M queries, N keys, D width, Dv value width.
"""

from collections.abc import Sequence

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


def token_pool(
    input: Tensor,
    window: int,
    key_padding_mask: Tensor | None = None,
    *,
    mode: str = "avg",
    tail: str = "ceil",
    num_special: int = 0,
) -> tuple[Tensor, Tensor]:
    """Pooling of tokens in windows, the down-sampling of :func:`attention_sh`.

    Args:
        input: [B, N, C] or [B, H, N, C]; float16, bfloat16, float32 or float64, any strides.
        window: tokens of a window, >= 1.
        key_padding_mask: [B, N] bool, True = not valid. What it hides may be NaN.
        mode: "avg": mean of the valid tokens; "max".
        tail: what becomes of a short last window: "ceil" keeps it, "drop" leaves it out.
        num_special: first tokens that are windows of their own.

    Returns:
        The windows [B, Nw, C] or [B, H, Nw, C] in the input dtype, 0 where no token is valid, and
        the number of valid tokens of each, float32 [B, Nw], not differentiable.

    Raises:
        RuntimeError, ValueError: "token_pool: expected <what>, but got <values>".
    """
    return torch.ops.kktorch.token_pool(
        input, window, key_padding_mask, mode=mode, tail=tail, num_special=num_special
    )


def attention_sh(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scales: Sequence[int],
    beta: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    *,
    bn: bool = False,
    count_weighting: bool = False,
    tail: str = "ceil",
    num_special: int = 0,
    beta_value: float = 1.0,
    use_std: bool = True,
    eps: float = 1e-5,
    is_causal: bool = False,
    query_offset: int | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention-SH: every head attends to the tokens pooled at a scale of its own.

    With the means ``k'``, ``v'`` of windows of ``scales[h]`` tokens::

        o[i] = sum_w softmax_w(scale q[i] . k'[w]) v'[w]

    (arXiv 2406.13781, section 3.3.) With ``bn``, :func:`attention_bn` on the pooled keys of each
    head. Causal: query p sees, pooled, the windows that end before its own begins, and, token by
    token, the special tokens and those of its own window up to p; time and memory stay linear in
    the number of windows. A causal call with ``attn_mask``, ``dropout_p`` or M != N materialises
    the probabilities.

    Args:
        query: [B, H, M, D]; float16, bfloat16, float32 or float64, any strides.
        key: [B, Hk, N, D], tokens, dtype and device of ``query``.
        value: [B, Hk, N, Dv], tokens, dtype and device of ``query``.
        scales: window of every key head, 1 or Hk numbers >= 1.
        beta: bn: see :func:`attention_bn`, as for all arguments not described here.
        key_padding_mask: [B, N] bool, True = ignore the token. What it hides may be NaN.
        attn_mask: [M, N] or [B|1, H|1, M, N] on tokens; a window is visible where all its valid
            tokens are. Floating masks only where every scale is 1.
        bn: normalise the pooled keys of each head; causal: with the statistics of the tokens up to
            the query. False: ``beta``, ``use_std`` and ``eps`` are ignored.
        count_weighting: a window weighs as much as it has valid tokens, not 1.
        tail: see :func:`token_pool`, as for ``num_special``.

    Returns:
        [B, H, M, Dv] in the input dtype. A row that sees no key is 0.

    Raises:
        RuntimeError, ValueError: "attention_sh: expected <what>, but got <values>".
        NotImplementedError: double backward; use :func:`attention_sh_ref`.
    """
    return torch.ops.kktorch.attention_sh(
        query,
        key,
        value,
        scales,
        beta,
        key_padding_mask,
        attn_mask,
        bn=bn,
        count_weighting=count_weighting,
        tail=tail,
        num_special=num_special,
        beta_value=beta_value,
        use_std=use_std,
        eps=eps,
        is_causal=is_causal,
        query_offset=query_offset,
        dropout_p=dropout_p,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def attention_sh_ref(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scales: Sequence[int],
    beta: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    *,
    literal: bool = False,
    **options,
) -> Tensor:
    """The executable specification of :func:`attention_sh`: same arguments, errors and result.

    See :func:`attention_bn_ref`.
    """
    return torch.ops.kktorch.attention_sh_ref(
        query, key, value, scales, beta, key_padding_mask, attn_mask, literal=literal, **options
    )


def attention_bn_decode(
    query: Tensor,
    key_new: Tensor,
    value_new: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    length: Tensor,
    mean: Tensor,
    m2: Tensor,
    beta: Tensor | None = None,
    *,
    beta_value: float = 1.0,
    use_std: bool = True,
    eps: float = 1e-5,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Causal :func:`attention_bn`, T new tokens at a time, on a cache of raw keys.

    Appends the new keys and values to the caches, takes the keys into the running statistics and
    attends: the caches, ``length``, ``mean`` and ``m2`` are written. All of Attention-BN sits in
    the query, so cached keys are never normalised again. Inference only. A beam search reorders the
    five state tensors by ``index_select`` along B. :class:`kktorch.nn.KVCache` holds them.

    Args:
        query: [B, H, T, D], T >= 1.
        key_new: [B, Hk, T, D].
        value_new: [B, Hk, T, Dv].
        key_cache: [B, Hk, C, D] of capacity C, dtype of ``query``.
        value_cache: [B, Hk, C, Dv], dtype of ``query``.
        length: [B] int64, tokens in the cache, which may differ between samples.
        mean: [B, Hk, D] float32, or float64 for float64 inputs: mean of the keys; 0 at first.
        m2: [B, Hk, D], likewise: sum of their squared deviations.
        beta: see :func:`attention_bn`, as for the options.

    Returns:
        [B, H, T, Dv] in the input dtype.

    Raises:
        RuntimeError, ValueError: "attention_bn_decode: expected <what>, but got <values>", also
            where the capacity is too small (on a GPU the caller has to track lengths).
    """
    return torch.ops.kktorch.attention_bn_decode(
        query,
        key_new,
        value_new,
        key_cache,
        value_cache,
        length,
        mean,
        m2,
        beta,
        beta_value=beta_value,
        use_std=use_std,
        eps=eps,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def attention_bn_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_q: int,
    max_k: int,
    beta: Tensor | None = None,
    *,
    beta_value: float = 1.0,
    use_std: bool = True,
    eps: float = 1e-5,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """:func:`attention_bn` on sequences of different lengths, one after the other in one tensor.

    Computed on a padded batch: time and memory are those of B sequences of the greatest length.

    Args:
        query: [total_q, H, D].
        key: [total_k, Hk, D].
        value: [total_k, Hk, Dv].
        cu_seqlens_q: [B + 1] int32, where the queries of each sequence begin, and their total.
        cu_seqlens_k: likewise for the keys.
        max_q: greatest number of queries of a sequence.
        max_k: greatest number of keys of a sequence.
        beta: see :func:`attention_bn`, as for the options.
        is_causal: needs as many queries as keys in every sequence.

    Returns:
        [total_q, H, Dv] in the input dtype.

    Raises:
        RuntimeError, ValueError: "attention_bn_varlen: expected <what>, but got <values>".
    """
    return torch.ops.kktorch.attention_bn_varlen(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        max_q,
        max_k,
        beta,
        beta_value=beta_value,
        use_std=use_std,
        eps=eps,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
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
