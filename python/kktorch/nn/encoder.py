"""The encoder that the classifiers share: learned positions and a stack of encoder layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kktorch.nn._option_checks import check_positive
from kktorch.nn.encoder_layer import EncoderLayer
from kktorch.nn.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """What a user chooses about the encoder of a model: keyword arguments of every classifier.

    Args:
        width: of the tokens.
        heads: of the attention.
        ffn: hidden width of the feed-forward networks.
        layers: number of encoder layers.
        dropout: after the positions and in the layers.
        attention_dropout: on the attention probabilities, see :class:`EncoderLayer`.
        norm: "layer", "batch" or "batch_masked", see :class:`TokenNorm`.
        norm_first: see :class:`EncoderLayer`.
        activation: "gelu" or "relu".
        attention: the variant of :class:`AttentionBNSH`.
        beta_mode: this and what follows: see :class:`AttentionBNSH`.
        beta_init: initial or fixed beta.
        use_std: divide the keys by their standard deviation.
        eps: variance floor.
        scales: windows of the heads.
        tail: "ceil" or "drop".
        count_weighting: a window weighs as much as it has tokens.
        conv: "none", "1d" or, where the tokens are a grid, "2d".
    """

    width: int = 128
    heads: int = 8
    ffn: int = 256
    layers: int = 3
    dropout: float = 0.1
    attention_dropout: float = 0.0
    norm: str = "batch"
    norm_first: bool = False
    activation: str = "gelu"
    attention: str = "bn"
    beta_mode: str = "fixed"
    beta_init: float = 1.0
    use_std: bool = True
    eps: float = 1e-5
    scales: Sequence[int] = ()
    tail: str = "ceil"
    count_weighting: bool = False
    conv: str = "none"


class Encoder(nn.Module):
    """Tokens x [B, L, width] to tokens of the same shape: ``layers(dropout(x + position))``, in one
    pass or, causally, chunk by chunk.

    Args:
        options: the user's choices.
        length: of the longest sequence.
        num_special: see :class:`AttentionBNSH`.
        conv_columns: 0: the tokens are no grid, and ``conv="2d"`` is refused.
        stats_mask: see :class:`AttentionBNSH`.

    Parameters: position [length, width], initially uniform in [-0.02, 0.02]; layers.<i>
    (:class:`EncoderLayer`). Initial values are drawn in this order.

    Raises:
        ValueError: "Encoder: expected <option>, but got <value>".
    """

    def __init__(
        self,
        options: EncoderOptions,
        length: int,
        *,
        num_special: int = 0,
        conv_columns: int = 0,
        stats_mask: bool = True,
    ) -> None:
        super().__init__()
        check_positive("Encoder: expected width", options.width)
        check_positive("Encoder: expected layers", options.layers)
        check_positive("Encoder: expected length", length)
        attention = {
            "embed_dim": options.width,
            "num_heads": options.heads,
            "dropout": options.attention_dropout,
            "variant": options.attention,
            "beta_mode": options.beta_mode,
            "beta_init": options.beta_init,
            "use_std": options.use_std,
            "eps": options.eps,
            "stats_mask": stats_mask,
            "scales": options.scales,
            "tail": options.tail,
            "count_weighting": options.count_weighting,
            "num_special": num_special,
            "conv": options.conv,
            "conv_columns": conv_columns,
        }
        self.dropout = options.dropout
        self.position = nn.Parameter(torch.empty(length, options.width).uniform_(-0.02, 0.02))
        self.layers = nn.ModuleList(
            EncoderLayer(
                attention,
                options.ffn,
                dropout=options.dropout,
                norm=options.norm,
                norm_first=options.norm_first,
                activation=options.activation,
            )
            for _ in range(options.layers)
        )

    def forward(
        self, x: Tensor, padding_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """One pass.

        Args:
            x: [B, L, width], L <= length. Padded tokens may hold any finite values.
            padding_mask: bool [B, L], True = padding.
            is_causal: a token sees none behind it, see :class:`AttentionBNSH`.

        Returns:
            [B, L, width]; what stands in padded tokens is to be dropped.

        Raises:
            RuntimeError: "Encoder: expected x [B, L <= {length}, {width}], but got {sizes}".
        """
        length, width = self.position.size(0), self.position.size(1)
        if x.dim() != 3 or x.size(1) > length or x.size(2) != width:
            raise RuntimeError(
                f"Encoder: expected x [B, L <= {length}, {width}], but got {list(x.shape)}"
            )
        h = F.dropout(x + self.position[: x.size(1)], self.dropout, self.training)
        for layer in self.layers:
            h = layer(h, padding_mask, is_causal=is_causal)
        return h

    @torch.jit.unused
    def make_caches(self, batch: int, capacity: int) -> list[KVCache]:
        """Empty caches, one per layer, for ``batch`` sequences of up to ``capacity`` <= length
        tokens."""
        length = self.position.size(0)
        if capacity > length:
            raise ValueError(
                f"Encoder: expected capacity <= {length}, the number of positions, "
                f"but got {capacity}"
            )
        return [layer.self_attn.make_cache(batch, capacity) for layer in self.layers]

    @torch.jit.unused
    @torch.no_grad()
    def decode(
        self, x_new: Tensor, caches: Sequence[KVCache], valid: Sequence[int] | None = None
    ) -> Tensor:
        """The next T >= 1 tokens of every sequence: the rows that the causal forward of all tokens
        up to now gives for them.

        Evaluation mode only; variants of :meth:`AttentionBNSH.decode`.

        Args:
            x_new: [B, T, width].
            caches: of :meth:`make_caches`; the tokens are added.
            valid: see :meth:`AttentionBNSH.decode`.

        Returns:
            [B, T, width].

        Raises:
            RuntimeError: "Encoder: expected <what>, but got <values>"; what
                :meth:`AttentionBNSH.decode` raises, and then no cache has changed.
        """
        if len(caches) != len(self.layers):
            raise RuntimeError(
                f"Encoder: expected {len(self.layers)} caches, one per layer, but got {len(caches)}"
            )
        past, (length, width) = caches[0].length, self.position.shape
        if x_new.dim() != 3 or x_new.size(0) != past.size(0) or x_new.size(2) != width:
            raise RuntimeError(
                f"Encoder: expected x_new [{past.size(0)}, T, {width}], but got {list(x_new.shape)}"
            )
        place = past.unsqueeze(1) + torch.arange(x_new.size(1), device=past.device)
        # Only padding behind the valid tokens lies beyond the last position: the caches end before.
        h = x_new + F.embedding(place.clamp_max(length - 1), self.position)
        for layer, cache in zip(self.layers, caches, strict=True):
            h = layer.decode(h, cache, valid)
        return h
