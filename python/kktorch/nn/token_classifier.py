"""A transformer encoder that classifies sequences of tokens of different lengths."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kktorch.nn._classifier_inputs import check_padding_mask
from kktorch.nn._option_checks import check_positive
from kktorch.nn.encoder import Encoder, EncoderOptions


class TokenClassifier(nn.Module):
    """Token ids [B, L] to logits [B, K]::

        h = encoder(embedding(ids))
        logits = head(relu(hidden(mean of h over the valid tokens)))

    Args:
        vocabulary: V; token ids are 0 ... V - 1.
        classes: K.
        max_length: longest sequence.
        head_width: hidden width of the head.
        encoder: keyword arguments of :class:`EncoderOptions`; ``norm`` is "layer" by default.

    Parameters: embedding (Embedding V x width), encoder (:class:`Encoder`, with learned positions),
    hidden (Linear width -> head_width), head (Linear head_width -> K). Initial values are those of
    ``torch.nn`` and :class:`Encoder`, drawn in this order. A seed gives the same model in C++ and
    in Python.

    Raises:
        ValueError: "TokenClassifier: expected <option>, but got <value>".
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        max_length: int,
        *,
        head_width: int = 128,
        **encoder: Any,
    ) -> None:
        super().__init__()
        options = EncoderOptions(**{"norm": "layer", **encoder})
        expected = "TokenClassifier: expected "
        check_positive(expected + "vocabulary", vocabulary)
        check_positive(expected + "classes", classes)
        check_positive(expected + "max_length", max_length)
        check_positive(expected + "head_width", head_width)
        check_positive(expected + "width", options.width)
        self.vocabulary = vocabulary
        self.max_length = max_length
        self.embedding = nn.Embedding(vocabulary, options.width)
        self.encoder = Encoder(options, max_length)
        self.hidden = nn.Linear(options.width, head_width)
        self.head = nn.Linear(head_width, classes)

    def forward(self, ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Logits [B, K].

        Args:
            ids: int64 [B, L], 1 <= L <= max_length. The check of their values waits for the device.
            padding_mask: bool [B, L], True = padding, which may hold anything. Every sequence needs
                a valid token.

        Raises:
            RuntimeError: "TokenClassifier: expected <what>, but got <values>". A compiled or
                exported model does not look at values: there the look-up itself refuses a wrong id,
                and a sequence without a valid token gives NaN.
            IndexError: ids outside the vocabulary.
        """
        self._check_shapes(ids, padding_mask)
        tokens = ids if padding_mask is None else ids.masked_fill(padding_mask, 0)
        if not torch.compiler.is_compiling():
            self._check_values(tokens, padding_mask)
        h = self.encoder(self.embedding(tokens), padding_mask)
        if padding_mask is None:
            mean = h.mean(1)
        else:
            count = padding_mask.logical_not().sum(1, keepdim=True)
            mean = h.masked_fill(padding_mask.unsqueeze(-1), 0.0).sum(1) / count
        return self.head(F.relu(self.hidden(mean)))

    def _check_shapes(self, ids: Tensor, padding: Tensor | None) -> None:
        shape = list(ids.shape)
        if len(shape) != 2 or ids.dtype != torch.int64 or not 1 <= shape[1] <= self.max_length:
            raise RuntimeError(
                f"TokenClassifier: expected ids int64 [B, 1 <= L <= {self.max_length}], "
                f"but got {ids.dtype} {shape}"
            )
        check_padding_mask("TokenClassifier", padding, ids)

    def _check_values(self, ids: Tensor, padding: Tensor | None) -> None:
        """Looked up unchecked, a wrong id ends a CUDA context."""
        if ids.numel() == 0:
            return
        least, largest = int(ids.min()), int(ids.max())
        if least < 0 or largest >= self.vocabulary:
            raise IndexError(
                f"TokenClassifier: expected ids in [0, {self.vocabulary}), "
                f"but got {least} to {largest}"
            )
        if padding is not None:
            empty = padding.all(1)
            if bool(empty.any()):
                raise RuntimeError(
                    "TokenClassifier: expected a valid token in every sequence, "
                    f"but got none in sequence {int(empty.int().argmax())}"
                )
