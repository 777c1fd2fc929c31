"""Multi-head attention whose heads are softmax attention or Attention-BN."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kktorch.nn._option_checks import check_choice, check_positive, check_probability


class AttentionBNSH(nn.Module):
    """Multi-head attention with the parameters, masks and layouts of ``nn.MultiheadAttention``.

    With equal widths the state dict is that of ``nn.MultiheadAttention``, and so are the initial
    values, drawn in the same order: a seed gives the same layer in both. The variant "softmax", and
    "bn" with beta 0 and ``use_std=False``, compute the same function.

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
        dropout: on the attention probabilities; > 0 leaves the fused path on the CPU.
        batch_first: [B, L, width] instead of [L, B, width].
        variant: "softmax" or "bn".
        beta_mode: bn: beta is the number ``beta_init`` ("fixed"), or learned, one for all heads
            ("scalar") or one a head ("per_head").
        beta_init: bn: value, or initial value, of beta. A learned one wants no weight decay.
        use_std: bn: divide the keys by their standard deviation.
        eps: bn: variance floor.
        stats_mask: False: ``key_padding_mask`` is ignored, padded keys enter statistics and softmax
            like any other (as in code that masks nothing).

    Parameters: in_proj_weight [E + Hk D + Hk Dv, E], or q_proj_weight, k_proj_weight, v_proj_weight
    if kdim or vdim differs from E; in_proj_bias; out_proj.weight [E, H Dv], out_proj.bias; beta []
    or [H] if it is learned.

    Raises:
        ValueError: "AttentionBNSH: expected <option>, but got <value>".
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        value_head_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = False,
        variant: str = "bn",
        beta_mode: str = "fixed",
        beta_init: float = 1.0,
        use_std: bool = True,
        eps: float = 1e-5,
        stats_mask: bool = True,
    ) -> None:
        super().__init__()
        expected = "AttentionBNSH: expected "
        check_choice(expected + "variant", variant, ("softmax", "bn"))
        check_choice(expected + "beta_mode", beta_mode, ("fixed", "scalar", "per_head"))
        check_probability(expected + "dropout", dropout)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        for name in ("embed_dim", "num_heads", "num_kv_heads", "kdim", "vdim"):
            check_positive(expected + name, getattr(self, name))
        if embed_dim % num_heads:
            raise ValueError(
                f"{expected}embed_dim divisible by num_heads, but got {embed_dim} and {num_heads}"
            )
        if num_heads % self.num_kv_heads:
            raise ValueError(
                f"{expected}num_heads divisible by num_kv_heads, "
                f"but got {num_heads} and {self.num_kv_heads}"
            )
        self.head_dim = embed_dim // num_heads
        self.value_head_dim = self.head_dim if value_head_dim is None else value_head_dim
        check_positive(expected + "value_head_dim", self.value_head_dim)
        if not math.isfinite(beta_init):
            raise ValueError(f"{expected}a finite beta_init, but got {beta_init}")
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"{expected}finite eps >= 0, but got {eps}")

        self.dropout = dropout
        self.batch_first = batch_first
        self.variant = variant
        self.beta_mode = beta_mode
        self.beta_init = float(beta_init)
        self.use_std = use_std
        self.eps = float(eps)
        self.stats_mask = stats_mask
        self.rows = [
            embed_dim,
            self.num_kv_heads * self.head_dim,
            self.num_kv_heads * self.value_head_dim,
        ]
        self._make_parameters(bias)

    def _make_parameters(self, bias: bool) -> None:
        # nn.MultiheadAttention's order: a seed gives the same initial values there and here.
        self.out_proj = nn.Linear(self.num_heads * self.value_head_dim, self.embed_dim, bias=bias)

        def projection(rows: int, inputs: int) -> nn.Parameter:
            return nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, inputs)))

        packed = self.kdim == self.embed_dim and self.vdim == self.embed_dim
        rows = self.rows
        self.in_proj_weight = projection(sum(rows), self.embed_dim) if packed else None
        self.q_proj_weight = None if packed else projection(rows[0], self.embed_dim)
        self.k_proj_weight = None if packed else projection(rows[1], self.kdim)
        self.v_proj_weight = None if packed else projection(rows[2], self.vdim)
        self.in_proj_bias = nn.Parameter(torch.zeros(sum(rows))) if bias else None
        if bias:
            nn.init.zeros_(self.out_proj.bias)
        learned = self.variant == "bn" and self.beta_mode != "fixed"
        shape = (self.num_heads,) if self.beta_mode == "per_head" else ()
        self.beta = nn.Parameter(torch.full(shape, self.beta_init)) if learned else None

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
                projections needs it finite.
            need_weights: also return the probabilities (materialised, O(L S)).
            attn_mask: [L, S] or [B H, L, S] ([H, L, S] without a batch), bool (True = forbidden) or
                floating (added to the scaled logits).
            average_attn_weights: mean of the weights over the heads.
            is_causal: query i sees keys 0..i, L = S; for bn also in the statistics.

        Returns:
            The output, laid out like ``query``, and the weights [B, L, S], or [B, H, L, S] per
            head, without B for unbatched input; None unless asked for.

        Raises:
            RuntimeError: "AttentionBNSH: expected <what>, but got <values>".
        """
        self._check_inputs(query, key, value, key_padding_mask, attn_mask, is_causal)
        batched = query.dim() == 3
        q, k, v = self._project(query, key, value)

        padding = key_padding_mask if self.stats_mask else None
        if padding is not None and not batched:
            padding = padding.unsqueeze(0)
        mask = attn_mask
        if mask is not None:
            if mask.dim() == 3:
                mask = mask.unflatten(0, [q.size(0), q.size(1)])
            if mask.dtype == torch.bool:
                mask = mask.logical_not()

        dropout = self.dropout if self.training else 0.0
        heads = self._attend(q, k, v, padding, mask, is_causal, dropout)
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            out = out.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        if not need_weights:
            return out, None

        # The output is P v: with the identity in place of v it is P itself, whatever the variant.
        size = k.size(2)
        identity = torch.eye(size, dtype=v.dtype, device=v.device)
        identity = identity.expand(k.size(0), k.size(1), size, size)
        weights = self._attend(q, k, identity, padding, mask, is_causal, 0.0)
        if average_attn_weights:
            weights = weights.mean(1)
        return out, weights if batched else weights.squeeze(0)

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value heads [B, heads, length, width]."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is not None and query is key and key is value:
            # One matrix product instead of three.
            q, k, v = F.linear(self._batch_first(query), weight, bias).split(self.rows, -1)
        else:
            if weight is not None:
                q_weight, k_weight, v_weight = weight.split(self.rows)
            else:
                q_weight, k_weight, v_weight = (
                    self.q_proj_weight,
                    self.k_proj_weight,
                    self.v_proj_weight,
                )
            q_bias, k_bias, v_bias = None, None, None
            if bias is not None:
                q_bias, k_bias, v_bias = bias.split(self.rows)
            q = F.linear(self._batch_first(query), q_weight, q_bias)
            k = F.linear(self._batch_first(key), k_weight, k_bias)
            v = F.linear(self._batch_first(value), v_weight, v_bias)
        q = q.unflatten(-1, [self.num_heads, self.head_dim]).transpose(1, 2)
        k = k.unflatten(-1, [self.num_kv_heads, self.head_dim]).transpose(1, 2)
        v = v.unflatten(-1, [self.num_kv_heads, self.value_head_dim]).transpose(1, 2)
        return q, k, v

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
        gqa = self.num_kv_heads != self.num_heads
        if self.variant == "bn":
            return torch.ops.kktorch.attention_bn(
                q,
                k,
                v,
                self.beta,
                padding,
                mask,
                beta_value=self.beta_init if self.beta is None else 1.0,
                use_std=self.use_std,
                eps=self.eps,
                is_causal=is_causal,
                dropout_p=dropout,
                enable_gqa=gqa,
            )
        # scaled_dot_product_attention multiplies padded keys and values by 0: select, they may be
        # NaN. It takes is_causal only without a mask.
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

    def _check_inputs(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> None:
        expected = "AttentionBNSH: expected "
        q_shape, k_shape, v_shape = list(query.shape), list(key.shape), list(value.shape)
        rank = len(q_shape)
        got = f"{q_shape}, {k_shape}, {v_shape}"
        if (
            rank not in (2, 3)
            or len(k_shape) != rank
            or len(v_shape) != rank
            or q_shape[-1] != self.embed_dim
            or k_shape[-1] != self.kdim
            or v_shape[-1] != self.vdim
        ):
            widths = f"{self.embed_dim}, {self.kdim}, {self.vdim}"
            raise RuntimeError(
                f"{expected}query, key, value of 2 or 3 dimensions and widths {widths}, "
                f"but got {got}"
            )
        batch_dim = 0 if self.batch_first else 1
        length_dim = 1 - batch_dim if rank == 3 else 0
        batch = q_shape[batch_dim] if rank == 3 else 1
        queries, keys = q_shape[length_dim], k_shape[length_dim]
        if k_shape[:-1] != v_shape[:-1] or (rank == 3 and k_shape[batch_dim] != batch):
            raise RuntimeError(
                f"{expected}key and value of equal length and the batch size of query, "
                f"but got {got}"
            )
        if is_causal and queries != keys:
            raise RuntimeError(
                f"{expected}as many queries as keys with is_causal, but got {queries} and {keys}"
            )
        if padding is not None:
            shape = [batch, keys] if rank == 3 else [keys]
            if padding.dtype != torch.bool or list(padding.shape) != shape:
                raise RuntimeError(
                    f"{expected}key_padding_mask bool {shape}, "
                    f"but got {padding.dtype} {list(padding.shape)}"
                )
        if attn_mask is not None:
            shared, own = [queries, keys], [batch * self.num_heads, queries, keys]
            got_shape = list(attn_mask.shape)
            typed = attn_mask.dtype == torch.bool or attn_mask.is_floating_point()
            if not typed or (got_shape != shared and got_shape != own):
                raise RuntimeError(
                    f"{expected}attn_mask bool or floating {shared} or {own}, "
                    f"but got {attn_mask.dtype} {got_shape}"
                )

    def extra_repr(self) -> str:
        text = (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
            f"num_kv_heads={self.num_kv_heads}, value_head_dim={self.value_head_dim}, "
            f"dropout={self.dropout}, batch_first={self.batch_first}, variant={self.variant}"
        )
        if self.variant == "bn":
            text += (
                f", beta_mode={self.beta_mode}, beta_init={self.beta_init}, "
                f"use_std={self.use_std}, eps={self.eps}"
            )
        return f"{text}, stats_mask={self.stats_mask}"


def _restrict_to(mask: Tensor | None, visible: Tensor) -> Tensor:
    """``mask`` (bool, True = visible, or additive, or None) where ``visible``, nothing else."""
    if mask is None:
        return visible
    if mask.dtype == torch.bool:
        return mask.logical_and(visible)
    return torch.where(visible, mask, float("-inf"))
