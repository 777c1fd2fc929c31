"""Transformer encoder layer: attention and a feed-forward network, each with a residual."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kktorch.nn._option_checks import check_choice, check_positive, check_probability
from kktorch.nn.attention_bnsh import AttentionBNSH
from kktorch.nn.kv_cache import KVCache
from kktorch.nn.token_norm import TokenNorm


class EncoderLayer(nn.Module):
    """With branch = attention, then linear2(activation(linear1))::

        x <- norm(x + branch(x))       or, with norm_first,       x <- x + branch(norm(x))

    Submodules self_attn, linear1, linear2, norm1, norm2, named and initialised as in
    ``nn.TransformerEncoderLayer``, whose state dict loads (norm "layer").

    Args:
        attention: keyword arguments of :class:`AttentionBNSH`; embed_dim is the layer's width,
            batch_first is implied. Its dropout, on the attention probabilities, is 0 by default,
            unlike ``nn.TransformerEncoderLayer``'s: the fused attention of the CPU has no dropout,
            so a positive value trains through materialised L x L probabilities.
        ffn: hidden width of the feed-forward network.
        dropout: after attention, after the activation and after the network.
        norm: "layer", "batch" or "batch_masked", see :class:`TokenNorm`.
        norm_first: normalise the input of a branch, not the sum.
        activation: "gelu" (exact) or "relu".

    Raises:
        ValueError: "EncoderLayer: expected <option>, but got <value>".
    """

    def __init__(
        self,
        attention: Mapping[str, Any],
        ffn: int,
        *,
        dropout: float = 0.1,
        norm: str = "layer",
        norm_first: bool = False,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        check_positive("EncoderLayer: expected ffn", ffn)
        check_probability("EncoderLayer: expected dropout", dropout)
        check_choice("EncoderLayer: expected activation", activation, ("gelu", "relu"))
        width = attention["embed_dim"]
        self.dropout = dropout
        self.norm_first = norm_first
        self.activation = activation
        self.self_attn = AttentionBNSH(**{**attention, "batch_first": True})
        self.linear1 = nn.Linear(width, ffn)
        self.linear2 = nn.Linear(ffn, width)
        self.norm1 = TokenNorm(norm, width)
        self.norm2 = TokenNorm(norm, width)

    def forward(
        self,
        x: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """One layer.

        Args:
            x: [B, L, width]. Padded tokens may hold any finite values.
            key_padding_mask: bool [B, L], True = padding.
            attn_mask: as in :class:`AttentionBNSH`.
            is_causal: as in :class:`AttentionBNSH`.

        Returns:
            [B, L, width]; what stands in padded tokens is to be dropped.
        """
        if self.norm_first:
            normed = self.norm1(x, key_padding_mask)
            attended = self._attention(normed, key_padding_mask, attn_mask, is_causal)
        else:
            attended = self._attention(x, key_padding_mask, attn_mask, is_causal)
        return self._after_attention(x, attended, key_padding_mask)

    @torch.no_grad()
    def decode(self, x_new: Tensor, cache: KVCache, valid: Sequence[int] | None = None) -> Tensor:
        """The next tokens x_new [B, T, width] of sequences whose past is in ``cache``, made by
        ``self_attn.make_cache``: :meth:`AttentionBNSH.decode` in place of the causal attention.
        Evaluation mode only."""
        if self.training:
            raise RuntimeError(
                "EncoderLayer: expected evaluation mode to decode, but got training mode"
            )
        normed = self.norm1(x_new) if self.norm_first else x_new
        return self._after_attention(x_new, self.self_attn.decode(normed, cache, valid), None)

    def _attention(
        self, x: Tensor, padding: Tensor | None, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        out = self.self_attn(x, x, x, padding, attn_mask=attn_mask, is_causal=is_causal)[0]
        return F.dropout(out, self.dropout, self.training)

    def _after_attention(self, x: Tensor, attended: Tensor, padding: Tensor | None) -> Tensor:
        y = x + attended
        if self.norm_first:
            return y + self._feed_forward(self.norm2(y, padding))
        y = self.norm1(y, padding)
        return self.norm2(y + self._feed_forward(y), padding)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(activate(self.linear1(x), self.activation), self.dropout, self.training)
        return F.dropout(self.linear2(hidden), self.dropout, self.training)

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}, norm_first={self.norm_first}, activation={self.activation}"


def activate(x: Tensor, activation: str) -> Tensor:
    """ "gelu" (exact) or "relu" of x."""
    return F.relu(x) if activation == "relu" else F.gelu(x)
