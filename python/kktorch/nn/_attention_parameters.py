"""Options, parameters and projections of AttentionBNSH."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kktorch.nn._head_groups import group_heads, head_places, take_heads
from kktorch.nn._option_checks import check_choice, check_positive, check_probability
from kktorch.nn.token_conv import TokenConv

VARIANTS = ("softmax", "bn", "sh", "bnsh", "linear", "linear_bn", "linear_sh", "linear_bnsh")


def default_scales(heads: int) -> list[int]:
    """Window of every head: 1 for one head, {1, 2} for two to seven, {1, 2, 4, 8} from eight on,
    each for an equal share of neighbouring heads."""
    levels = 4 if heads >= 8 else 2 if heads >= 2 else 1
    return [2 ** (head * levels // heads) for head in range(heads)]


class AttentionParameters(nn.Module):
    """What :class:`AttentionBNSH`, which documents it, has before it attends."""

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
        scales: Sequence[int] = (),
        tail: str = "ceil",
        count_weighting: bool = False,
        num_special: int = 0,
        conv: str = "none",
        conv_columns: int = 0,
    ) -> None:
        super().__init__()
        check_choice("AttentionBNSH: expected variant", variant, VARIANTS)
        self.variant = variant
        self.is_linear = variant.startswith("linear")
        self.normalises = "bn" in variant
        self.pools = variant.endswith("sh")

        self._set_widths(embed_dim, num_heads, num_kv_heads, kdim, vdim, value_head_dim)
        self._set_normalisation(beta_mode, beta_init, use_std, eps)
        self._set_pooling(scales, tail, count_weighting, num_special)
        self._set_convolution(conv, conv_columns)
        check_probability("AttentionBNSH: expected dropout", dropout)
        if self.is_linear and dropout > 0:
            raise ValueError(
                f"AttentionBNSH: expected dropout 0 with variant '{variant}', which has no "
                f"attention probabilities, but got {dropout}"
            )
        self.dropout = dropout
        self.batch_first = batch_first
        self.stats_mask = stats_mask
        self._make_parameters(bias)

    def _set_widths(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None,
        kdim: int | None,
        vdim: int | None,
        value_head_dim: int | None,
    ) -> None:
        expected = "AttentionBNSH: expected "
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
        self.queries_per_key = num_heads // self.num_kv_heads
        self.head_dim = embed_dim // num_heads
        self.value_head_dim = self.head_dim if value_head_dim is None else value_head_dim
        check_positive(expected + "value_head_dim", self.value_head_dim)
        self.widths = [self.head_dim, self.head_dim, self.value_head_dim]
        self.rows = [
            embed_dim,
            self.num_kv_heads * self.head_dim,
            self.num_kv_heads * self.value_head_dim,
        ]

    def _set_normalisation(
        self, beta_mode: str, beta_init: float, use_std: bool, eps: float
    ) -> None:
        expected = "AttentionBNSH: expected "
        check_choice(expected + "beta_mode", beta_mode, ("fixed", "scalar", "per_head"))
        if not math.isfinite(beta_init):
            raise ValueError(f"{expected}a finite beta_init, but got {beta_init}")
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"{expected}finite eps >= 0, but got {eps}")
        self.beta_mode = beta_mode
        self.beta_init = float(beta_init)
        self.use_std = use_std
        self.eps = float(eps)

    def _set_pooling(
        self, scales: Sequence[int], tail: str, count_weighting: bool, num_special: int
    ) -> None:
        expected, heads = "AttentionBNSH: expected ", self.num_kv_heads
        if len(scales) not in (0, 1, heads) or any(scale < 1 for scale in scales):
            raise ValueError(f"{expected}1 or {heads} scales, each >= 1, but got {list(scales)}")
        check_choice(expected + "tail", tail, ("ceil", "drop"))
        if num_special < 0:
            raise ValueError(f"{expected}num_special >= 0, but got {num_special}")
        if not self.pools:
            self.scales = [1] * heads
        elif len(scales) <= 1:
            self.scales = list(scales) * heads or default_scales(heads)
        else:
            self.scales = list(scales)
        self.group_scales, self.group_heads = group_heads(self.scales)
        self.head_places = head_places(self.group_heads)
        self.tail = tail
        self.count_weighting = count_weighting
        self.num_special = num_special

    def _set_convolution(self, conv: str, conv_columns: int) -> None:
        expected = "AttentionBNSH: expected "
        check_choice(expected + "conv", conv, ("none", "1d", "2d"))
        if conv == "2d" and conv_columns < 1:
            raise ValueError(f"{expected}conv_columns >= 1 with conv '2d', but got {conv_columns}")
        self.conv = conv
        self.conv_columns = conv_columns

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
        learned = self.normalises and self.beta_mode != "fixed"
        heads = self.num_kv_heads if self.is_linear else self.num_heads
        shape = (heads,) if self.beta_mode == "per_head" else ()
        self.beta = nn.Parameter(torch.full(shape, self.beta_init)) if learned else None

        def convolution(channels: int) -> TokenConv | None:
            if self.conv == "none":
                return None
            return TokenConv(channels, self.conv, self.conv_columns, self.num_special)

        self.conv_q, self.conv_k = convolution(rows[0]), convolution(rows[1])

    def _beta_value(self) -> float:
        """The beta_value of the ops: they want 1 next to a parameter."""
        if not self.normalises:
            return 0.0
        return self.beta_init if self.beta is None else 1.0

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _projection(self, which: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the query (0), key (1) or value (2) projection."""
        bias = self.in_proj_bias
        if bias is not None:
            bias = bias.split(self.rows)[which]
        weight = self.in_proj_weight
        if weight is not None:
            own = weight.split(self.rows)[which]
        else:
            own = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight][which]
        return own, bias

    def _split_heads(self, t: Tensor, which: int) -> Tensor:
        """[B, length, heads width] to [B, heads, length, width]."""
        return t.unflatten(-1, [-1, self.widths[which]]).transpose(1, 2)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value heads [B, heads, length, width]."""
        weight = self.in_proj_weight
        if weight is not None and query is key and key is value:
            # One matrix product instead of three.
            q, k, v = F.linear(query, weight, self.in_proj_bias).split(self.rows, -1)
        else:
            q_weight, q_bias = self._projection(0)
            k_weight, k_bias = self._projection(1)
            v_weight, v_bias = self._projection(2)
            q = F.linear(query, q_weight, q_bias)
            k = F.linear(key, k_weight, k_bias)
            v = F.linear(value, v_weight, v_bias)
        return self._split_heads(q, 0), self._split_heads(k, 1), self._split_heads(v, 2)

    def _project_heads(self, tokens: Tensor, which: int, heads: list[int]) -> Tensor:
        """Key (1) or value (2) heads ``heads`` of tokens [B, length, width]."""
        width = self.widths[which]
        weight, bias = self._projection(which)
        if bias is not None:
            bias = take_heads(bias, 0, heads, width)
        return self._split_heads(F.linear(tokens, take_heads(weight, 0, heads, width), bias), which)

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
        if self.is_linear:
            if attn_mask is not None:
                raise NotImplementedError(
                    f"{expected}no attn_mask with variant '{self.variant}', but got one"
                )
            if self.pools and is_causal:
                raise NotImplementedError(
                    f"{expected}is_causal=False with variant '{self.variant}', but got True"
                )
        if self.conv == "2d":
            if is_causal:
                raise NotImplementedError(f"{expected}is_causal=False with conv '2d', but got True")
            for length in (queries, keys):
                if length < self.num_special or (length - self.num_special) % self.conv_columns:
                    raise RuntimeError(
                        f"{expected}num_special={self.num_special} tokens and rows of "
                        f"conv_columns={self.conv_columns} with conv '2d', "
                        f"but got a length of {length}"
                    )

    def extra_repr(self) -> str:
        text = (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
            f"num_kv_heads={self.num_kv_heads}, value_head_dim={self.value_head_dim}, "
            f"dropout={self.dropout}, batch_first={self.batch_first}, variant={self.variant}"
        )
        if self.normalises:
            text += (
                f", beta_mode={self.beta_mode}, beta_init={self.beta_init}, "
                f"use_std={self.use_std}, eps={self.eps}"
            )
        if self.pools:
            text += (
                f", scales={self.scales}, tail={self.tail}, "
                f"count_weighting={self.count_weighting}, num_special={self.num_special}"
            )
        return f"{text}, conv={self.conv}, stats_mask={self.stats_mask}"
