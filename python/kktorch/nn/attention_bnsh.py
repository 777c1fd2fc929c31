"""Multi-head attention whose heads are softmax attention, Attention-BN, Attention-SH, both, or the
linear counterparts of these."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kktorch.nn._attention_decode import check_decodes, decode
from kktorch.nn._attention_parameters import AttentionParameters
from kktorch.nn._head_groups import merge_heads, take_heads
from kktorch.nn.kv_cache import KVCache


class AttentionBNSH(AttentionParameters):
    """Multi-head attention with the parameters, masks and layouts of ``nn.MultiheadAttention``.

    With equal widths the state dict is that of ``nn.MultiheadAttention``, and so are the initial
    values, drawn in the same order: a seed gives the same layer in both. The variant "softmax",
    "bn" with beta 0 and ``use_std=False``, and "sh" with scales 1 compute the same function.

    It differs from ``nn.MultiheadAttention`` in that ``need_weights`` defaults to False,
    ``is_causal`` is binding and not a hint, the returned weights carry no dropout, and a query that
    sees no key gives 0 (before the output projection), not NaN.

    Args:
        embed_dim: width E of queries and outputs.
        num_heads: query heads H; D = E / H is the width of a head.
        num_kv_heads: key/value heads Hk, a divisor of H; default H.
        kdim: width of the keys' input; default E.
        vdim: width of the values' input; default E.
        value_head_dim: width Dv of a head's values; default D.
        bias: of all projections.
        dropout: on the attention probabilities, which linear variants do not have; > 0 leaves the
            fused path on the CPU.
        batch_first: [B, L, width] instead of [L, B, width].
        variant: "softmax", "bn" (keys normalised), "sh" (keys and values pooled), "bnsh" (both),
            "linear", "linear_bn", "linear_sh" or "linear_bnsh".
        beta_mode: bn: beta is the number ``beta_init`` ("fixed"), or learned, one for all heads
            ("scalar") or one a head ("per_head"; a key head for linear variants).
        beta_init: bn: value, or initial value, of beta. A learned one wants no weight decay.
        use_std: bn: divide the keys by their standard deviation.
        eps: bn: variance floor.
        stats_mask: False: ``key_padding_mask`` is ignored, padded keys enter statistics and softmax
            like any other (as in code that masks nothing).
        scales: sh: window of every key head, 1 or Hk numbers; empty: ``default_scales(Hk)``.
        tail: sh: the last window may be short ("ceil") or is left out if it is ("drop").
        count_weighting: sh: a window weighs as much as it has tokens, not 1.
        num_special: first tokens that are neither pooled nor convolved, as [CLS].
        conv: depth-wise convolution of queries and keys over the tokens, see :class:`TokenConv`:
            "none", "1d" or "2d".
        conv_columns: 2d: width of the grid of tokens; required there.

    Parameters: in_proj_weight [E + Hk D + Hk Dv, E], or q_proj_weight, k_proj_weight, v_proj_weight
    if kdim or vdim differs from E; in_proj_bias; out_proj.weight [E, H Dv], out_proj.bias; beta [],
    [H] or, in linear variants, [Hk] if it is learned; conv_q.weight and conv_k.weight with a
    convolution.

    Raises:
        ValueError: "AttentionBNSH: expected <option>, but got <value>".
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """B batch, L queries, S keys, E embed_dim, H heads.

        Args:
            query: [L, B, E], or [B, L, E] with ``batch_first``, or [L, E] without a batch.
            key: [S, B, kdim], laid out like ``query``.
            value: [S, B, vdim], laid out like ``query``.
            key_padding_mask: bool [B, S] ([S] without a batch), True = ignore the key. What stands
                in a padded key does not reach the output, NaN included; the gradient of the
                projections needs it finite. A convolution takes it for the queries, too, if
                ``query is key``.
            need_weights: also return the probabilities (materialised, O(L S)). What a query gives
                to a window is spread evenly over its tokens.
            attn_mask: [L, S] or [B H, L, S] ([H, L, S] without a batch), bool (True = forbidden) or
                floating (added to the scaled logits; not where heads pool). Not for linear
                variants.
            average_attn_weights: mean of the weights over the heads.
            is_causal: query i sees keys 0..i, L = S; for bn also in the statistics. Not for
                linear_sh, linear_bnsh and the 2d convolution.

        Returns:
            The output, laid out like ``query``, and the weights [B, L, S], or [B, H, L, S] per
            head, without B for unbatched input; None unless asked for.

        Raises:
            RuntimeError: "AttentionBNSH: expected <what>, but got <values>".
            NotImplementedError: a mask or causality that the variant does not have.
        """
        self._check_inputs(query, key, value, key_padding_mask, attn_mask, is_causal)
        batched = query.dim() == 3
        # One tensor for equal inputs, so that what follows still sees that they are.
        x = self._batch_first(query)
        memory = x if key is query else self._batch_first(key)
        content = memory if value is key else self._batch_first(value)
        padding = key_padding_mask if self.stats_mask else None
        if padding is not None and not batched:
            padding = padding.unsqueeze(0)
        mask = attn_mask
        if mask is not None:
            if mask.dim() == 3:
                mask = mask.unflatten(0, [x.size(0), self.num_heads])
            if mask.dtype == torch.bool:
                mask = mask.logical_not()

        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        pools_inputs = self.pools and self.conv_k is None and mask is None
        if pools_inputs and not is_causal and not need_weights:
            heads = self._attend_pooled_inputs(x, memory, content, padding, dropout)
        else:
            q, k, v = self._project(x, memory, content)
            if self.conv_q is not None and self.conv_k is not None:
                q = self.conv_q(q, padding if query is key else None, is_causal)
                k = self.conv_k(k, padding, is_causal)
            heads = self._attend(q, k, v, padding, mask, is_causal, dropout)
            if need_weights:
                # The output is P v: with the identity in place of v it is P itself, whatever the
                # variant.
                size = k.size(2)
                identity = torch.eye(size, dtype=v.dtype, device=v.device)
                identity = identity.expand(k.size(0), k.size(1), size, size)
                weights = self._attend(q, k, identity, padding, mask, is_causal, 0.0)

        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            out = out.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        if weights is not None:
            if average_attn_weights:
                weights = weights.mean(1)
            if not batched:
                weights = weights.squeeze(0)
        return out, weights

    def make_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for ``batch`` sequences of up to ``capacity`` tokens, in the dtype and on
        the device of the layer."""
        check_decodes(self)
        weight = self.out_proj.weight
        return KVCache(
            batch,
            capacity,
            self.head_dim,
            self.value_head_dim,
            self.scales,
            num_special=self.num_special if self.pools else 0,
            dtype=weight.dtype,
            device=weight.device,
        )

    def decode(self, x_new: Tensor, cache: KVCache, valid: Sequence[int] | None = None) -> Tensor:
        """The next T >= 1 tokens of every sequence: the rows that ``forward(x, x, x,
        is_causal=True)`` of all tokens up to now gives for them.

        No gradients, no dropout; variants softmax, bn, sh and bnsh without convolution.

        Args:
            x_new: [T, B, E], or [B, T, E] with ``batch_first``.
            cache: of :meth:`make_cache`; the tokens are added.
            valid: number of tokens of ``x_new`` that each sequence has, 0 ... T, the rest is
                padding at its end and gives rows to be dropped; None: T for all.

        Returns:
            Laid out like ``x_new``.

        Raises:
            RuntimeError: "AttentionBNSH: expected <what>, but got <values>", "KVCache: expected
                capacity >= {need}, but got {C}".
            NotImplementedError: another variant, or a convolution.
        """
        return decode(self, x_new, cache, valid)

    # ---- attention of the variants ----

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        padding: Tensor | None,
        mask: Tensor | None,
        is_causal: bool,
        dropout: float,
    ) -> Tensor:
        """The heads' outputs [B, H, L, Dv]; ``mask`` is bool, True = may attend, or additive."""
        if self.variant == "softmax":
            return _softmax_attention(
                q, k, v, padding, mask, is_causal, dropout, self.queries_per_key > 1
            )
        if not self.pools:
            return self._attend_to_keys(q, k, v, self.beta, None, padding, mask, is_causal, dropout)
        if self.is_linear:
            return self._attend_pooled_heads(q, k, v, padding)
        return torch.ops.kktorch.attention_sh(
            q,
            k,
            v,
            self.scales,
            self.beta,
            padding,
            mask,
            bn=self.normalises,
            count_weighting=self.count_weighting,
            tail=self.tail,
            num_special=self.num_special,
            beta_value=self._beta_value(),
            use_std=self.use_std,
            eps=self.eps,
            is_causal=is_causal,
            dropout_p=dropout,
            enable_gqa=self.queries_per_key > 1,
        )

    def _attend_to_keys(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor | None,
        key_weight: Tensor | None,
        padding: Tensor | None,
        mask: Tensor | None,
        is_causal: bool,
        dropout: float,
    ) -> Tensor:
        """Attention to tokens or windows of weight ``key_weight``. Attention-BN that neither
        re-centres nor divides is softmax attention."""
        if self.is_linear:
            return torch.ops.kktorch.linear_attention(
                q,
                k,
                v,
                beta,
                padding,
                key_weight=key_weight,
                bn=self.normalises,
                beta_value=self._beta_value(),
                use_std=self.use_std,
                eps=self.eps,
                is_causal=is_causal,
                enable_gqa=self.queries_per_key > 1,
            )
        return torch.ops.kktorch.attention_bn(
            q,
            k,
            v,
            beta,
            padding,
            mask,
            key_weight=key_weight,
            beta_value=self._beta_value(),
            use_std=self.normalises and self.use_std,
            eps=self.eps,
            is_causal=is_causal,
            dropout_p=dropout,
            enable_gqa=self.queries_per_key > 1,
        )

    def _pool(
        self, tokens: Tensor, scale: int, padding: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Windows of ``tokens``, their padding mask and their weights."""
        if scale == 1:
            return tokens, padding, None
        windows, counts = torch.ops.kktorch.token_pool(
            tokens, scale, padding, tail=self.tail, num_special=self.num_special
        )
        return (
            windows,
            counts == 0 if padding is not None else None,
            counts if self.count_weighting else None,
        )

    def _attend_group(
        self,
        q: Tensor,
        heads: list[int],
        k: Tensor,
        v: Tensor,
        padding: Tensor | None,
        key_weight: Tensor | None,
        dropout: float,
    ) -> Tensor:
        """The query heads that share the key heads ``heads``, on these."""
        beta = self.beta
        if beta is not None:
            if beta.dim() == 1:
                beta = take_heads(beta, 0, heads, 1 if self.is_linear else self.queries_per_key)
        q = take_heads(q, 1, heads, self.queries_per_key)
        return self._attend_to_keys(q, k, v, beta, key_weight, padding, None, False, dropout)

    def _attend_pooled_heads(
        self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None
    ) -> Tensor:
        parts: list[Tensor] = []
        for i in range(len(self.group_scales)):
            scale, heads = self.group_scales[i], self.group_heads[i]
            keys, empty, weight = self._pool(take_heads(k, 1, heads, 1), scale, padding)
            values = self._pool(take_heads(v, 1, heads, 1), scale, padding)[0]
            parts.append(self._attend_group(q, heads, keys, values, empty, weight, 0.0))
        return merge_heads(parts, self.head_places, self.queries_per_key)

    def _attend_pooled_inputs(
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, dropout: float
    ) -> Tensor:
        """Attention of heads that pool, from the inputs [B, length, width], without mask.

        Pooling by averages commutes with a projection: pooled first, the key and value projections
        cost as much less as there are fewer windows than tokens.
        """
        q_weight, q_bias = self._projection(0)
        q = self._split_heads(F.linear(query, q_weight, q_bias), 0)
        parts: list[Tensor] = []
        for i in range(len(self.group_scales)):
            scale, heads = self.group_scales[i], self.group_heads[i]
            keys, empty, weight = self._pool(key, scale, padding)
            values = keys if value is key else self._pool(value, scale, padding)[0]
            keys = self._project_heads(keys, 1, heads)
            values = self._project_heads(values, 2, heads)
            parts.append(self._attend_group(q, heads, keys, values, empty, weight, dropout))
        return merge_heads(parts, self.head_places, self.queries_per_key)


def _softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    mask: Tensor | None,
    is_causal: bool,
    dropout: float,
    gqa: bool,
) -> Tensor:
    """scaled_dot_product_attention multiplies padded keys and values by 0: select, they may be NaN.
    It takes is_causal only without a mask."""
    if padding is not None:
        padded = padding.unsqueeze(1).unsqueeze(-1)
        k, v = k.masked_fill(padded, 0.0), v.masked_fill(padded, 0.0)
        mask = _restrict_to(mask, padding.logical_not().unsqueeze(1).unsqueeze(1))
    if is_causal and mask is not None:
        visible = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device)
        mask = _restrict_to(mask, visible.tril())
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout, is_causal and mask is None, enable_gqa=gqa
    )


def _restrict_to(mask: Tensor | None, visible: Tensor) -> Tensor:
    """``mask`` (bool, True = visible, or additive, or None) where ``visible``, nothing else."""
    if mask is None:
        return visible
    if mask.dtype == torch.bool:
        return mask.logical_and(visible)
    return torch.where(visible, mask, float("-inf"))
