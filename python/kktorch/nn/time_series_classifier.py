"""A transformer encoder that classifies multivariate time series of different lengths."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kktorch.nn._classifier_inputs import check_padding_mask, set_standardisation
from kktorch.nn._option_checks import check_positive
from kktorch.nn.encoder import Encoder, EncoderOptions
from kktorch.nn.encoder_layer import activate


class TimeSeriesClassifier(nn.Module):
    """Series x [B, L, C] to logits [B, K]::

        h = encoder(sqrt(width) * embedding((x - input_mean) / input_std))
        logits = head(flatten(dropout(activation(h)), padded steps zero, max_length steps))

    The shape of the public mvts_transformer (Zerveas et al., KDD 2021, arXiv 2010.02803).

    Args:
        channels: C.
        classes: K.
        max_length: longest series; the flattening head fixes it.
        ragged_masks: attention ignores padded steps. False: every series has max_length steps for
            it, the padded ones zero (as in code that masks nothing).
        encoder: keyword arguments of :class:`EncoderOptions`.

    Parameters: embedding (Linear C -> width), encoder (:class:`Encoder`, with learned positions),
    head (Linear max_length width -> K). Buffers: input_mean, input_std [C], so that a saved model
    takes raw series; 0 and 1 until :meth:`standardise_with` is called. Initial values are those of
    ``torch.nn`` and :class:`Encoder`, drawn in this order. A seed gives the same model in C++ and
    in Python.

    Raises:
        ValueError: "TimeSeriesClassifier: expected <option>, but got <value>".
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        max_length: int,
        *,
        ragged_masks: bool = True,
        **encoder: Any,
    ) -> None:
        super().__init__()
        options = EncoderOptions(**encoder)
        expected = "TimeSeriesClassifier: expected "
        check_positive(expected + "channels", channels)
        check_positive(expected + "classes", classes)
        check_positive(expected + "max_length", max_length)
        check_positive(expected + "width", options.width)
        self.channels = channels
        self.max_length = max_length
        self.dropout = options.dropout
        self.activation = options.activation
        self.ragged_masks = ragged_masks
        self.embedding_scale = math.sqrt(options.width)
        self.register_buffer("input_mean", torch.zeros(channels))
        self.register_buffer("input_std", torch.ones(channels))
        self.embedding = nn.Linear(channels, options.width)
        self.encoder = Encoder(options, max_length, stats_mask=ragged_masks)
        self.head = nn.Linear(max_length * options.width, classes)

    @torch.jit.unused
    def standardise_with(self, mean: Tensor, std: Tensor) -> None:
        """Sets input_mean and input_std to the statistics [C] of the training set's valid steps.

        A channel with standard deviation 0 is centred only.
        """
        set_standardisation("TimeSeriesClassifier", mean, std, self.input_mean, self.input_std)

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
        h = self.encoder(self.embedding(h) * self.embedding_scale, padding)
        h = F.dropout(activate(h, self.activation), self.dropout, self.training)
        if padding is not None:
            h = h.masked_fill(padding.unsqueeze(-1), 0.0)
        h = F.pad(h, [0, 0, 0, self.max_length - h.size(1)])
        return self.head(h.flatten(1))

    def _check_inputs(self, x: Tensor, padding: Tensor | None) -> None:
        shape = list(x.shape)
        if (
            len(shape) != 3
            or not x.is_floating_point()
            or shape[1] > self.max_length
            or shape[2] != self.channels
        ):
            raise RuntimeError(
                f"TimeSeriesClassifier: expected x floating "
                f"[B, L <= {self.max_length}, {self.channels}], but got {x.dtype} {shape}"
            )
        check_padding_mask("TimeSeriesClassifier", padding, x)
