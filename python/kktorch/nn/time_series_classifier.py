"""A transformer encoder that classifies multivariate time series of different lengths."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kktorch.nn._option_checks import check_positive
from kktorch.nn.encoder_layer import EncoderLayer, activate


class TimeSeriesClassifier(nn.Module):
    """Series x [B, L, C] to logits [B, K]::

        h = dropout(sqrt(width) * embedding((x - input_mean) / input_std) + position)
        h = layers(h)
        logits = head(flatten(dropout(activation(h)), padded steps zero, max_length steps))

    The shape of the public mvts_transformer (Zerveas et al., KDD 2021, arXiv 2010.02803).

    Args:
        channels: C.
        classes: K.
        max_length: longest series; the flattening head fixes it.
        width: of the encoder.
        heads: of the attention.
        ffn: hidden width of the feed-forward networks.
        layers: number of encoder layers.
        dropout: after the embedding, in the layers and before the head.
        attention_dropout: on the attention probabilities, see :class:`EncoderLayer`.
        norm: "layer", "batch" or "batch_masked", see :class:`TokenNorm`.
        activation: "gelu" or "relu".
        attention: "softmax" or "bn".
        beta_mode: see :class:`AttentionBNSH`, also for the next three.
        beta_init: initial or fixed beta.
        use_std: divide the keys by their standard deviation.
        eps: variance floor.
        ragged_masks: attention ignores padded steps. False: every series has max_length steps for
            it, the padded ones zero (as in code that masks nothing).

    Parameters: embedding (Linear C -> width), position [max_length, width], layers.<i>
    (:class:`EncoderLayer`), head (Linear max_length width -> K). Buffers: input_mean, input_std
    [C], so that a saved model takes raw series; 0 and 1 until :meth:`standardise_with` is called.
    Initial values: position uniform in [-0.02, 0.02], all else as in ``torch.nn``; drawn in the
    order in which the parameters are named here. A seed gives the same model in C++ and in Python.

    Raises:
        ValueError: "TimeSeriesClassifier: expected <option>, but got <value>".
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        max_length: int,
        *,
        width: int = 128,
        heads: int = 8,
        ffn: int = 256,
        layers: int = 3,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        norm: str = "batch",
        activation: str = "gelu",
        attention: str = "bn",
        beta_mode: str = "fixed",
        beta_init: float = 1.0,
        use_std: bool = True,
        eps: float = 1e-5,
        ragged_masks: bool = True,
    ) -> None:
        super().__init__()
        expected = "TimeSeriesClassifier: expected "
        check_positive(expected + "channels", channels)
        check_positive(expected + "classes", classes)
        check_positive(expected + "max_length", max_length)
        check_positive(expected + "layers", layers)
        attention_options = {
            "embed_dim": width,
            "num_heads": heads,
            "dropout": attention_dropout,
            "variant": attention,
            "beta_mode": beta_mode,
            "beta_init": beta_init,
            "use_std": use_std,
            "eps": eps,
            "stats_mask": ragged_masks,
        }
        self.channels = channels
        self.max_length = max_length
        self.dropout = dropout
        self.activation = activation
        self.ragged_masks = ragged_masks
        self.embedding_scale = math.sqrt(width)
        self.register_buffer("input_mean", torch.zeros(channels))
        self.register_buffer("input_std", torch.ones(channels))
        self.embedding = nn.Linear(channels, width)
        self.position = nn.Parameter(torch.empty(max_length, width).uniform_(-0.02, 0.02))
        self.layers = nn.ModuleList(
            EncoderLayer(attention_options, ffn, dropout=dropout, norm=norm, activation=activation)
            for _ in range(layers)
        )
        self.head = nn.Linear(max_length * width, classes)

    @torch.jit.unused
    def standardise_with(self, mean: Tensor, std: Tensor) -> None:
        """Sets input_mean and input_std to the statistics [C] of the training set's valid steps.

        A channel with standard deviation 0 is centred only.
        """
        expected = "TimeSeriesClassifier: expected "
        if mean.shape != self.input_mean.shape or std.shape != self.input_std.shape:
            raise RuntimeError(
                f"{expected}mean and std of shape {list(self.input_mean.shape)}, "
                f"but got {list(mean.shape)} and {list(std.shape)}"
            )
        if not (mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
            raise ValueError(f"{expected}finite mean and std >= 0, but got {mean} and {std}")
        with torch.no_grad():
            self.input_mean.copy_(mean)
            self.input_std.copy_(std.masked_fill(std == 0, 1.0))

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Logits [B, K].

        Args:
            x: [B, L, C] floating, raw (not standardised), L <= max_length.
            padding_mask: bool [B, L], True = padding, which may hold anything.

        Raises:
            RuntimeError: "TimeSeriesClassifier: expected <what>, but got <values>".
        """
        self._check_inputs(x, padding_mask)
        padding = padding_mask
        h = (x.to(self.input_mean.dtype) - self.input_mean) / self.input_std
        if padding is not None:
            h = h.masked_fill(padding.unsqueeze(-1), 0.0)
        if not self.ragged_masks:
            if padding is None:
                padding = torch.zeros(x.size(0), x.size(1), dtype=torch.bool, device=x.device)
            missing = self.max_length - x.size(1)
            h = F.pad(h, [0, 0, 0, missing])
            padding = F.pad(padding, [0, missing], value=1.0)
        h = self.embedding(h) * self.embedding_scale + self.position[: h.size(1)]
        h = F.dropout(h, self.dropout, self.training)
        for layer in self.layers:
            h = layer(h, padding)
        h = F.dropout(activate(h, self.activation), self.dropout, self.training)
        if padding is not None:
            h = h.masked_fill(padding.unsqueeze(-1), 0.0)
        h = F.pad(h, [0, 0, 0, self.max_length - h.size(1)])
        return self.head(h.flatten(1))

    def _check_inputs(self, x: Tensor, padding: Tensor | None) -> None:
        expected = "TimeSeriesClassifier: expected "
        shape = list(x.shape)
        if (
            len(shape) != 3
            or not x.is_floating_point()
            or shape[1] > self.max_length
            or shape[2] != self.channels
        ):
            raise RuntimeError(
                f"{expected}x floating [B, L <= {self.max_length}, {self.channels}], "
                f"but got {x.dtype} {shape}"
            )
        if padding is not None:
            if padding.dtype != torch.bool or list(padding.shape) != shape[:2]:
                raise RuntimeError(
                    f"{expected}padding_mask bool {shape[:2]}, "
                    f"but got {padding.dtype} {list(padding.shape)}"
                )
