"""Normalisation of token features, over a token or over the tokens of a batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kktorch.nn._option_checks import check_choice, check_positive


class TokenNorm(nn.Module):
    """Affine normalisation of x [B, L, width]: ``(x - mean) / sqrt(var + 1e-5) * weight + bias``.

    Args:
        kind: "layer": mean and variance of each token (``nn.LayerNorm``). "batch": of each feature
            over batch and time in training, running averages (momentum 0.1) in evaluation
            (``nn.BatchNorm1d`` over the B L tokens); padding counts like data. "batch_masked": the
            same over the tokens that are no padding.
        width: number of features.

    Parameters weight, bias [width]; the batch kinds have the buffers running_mean, running_var
    [width] and num_batches_tracked, as ``nn.BatchNorm1d`` does.

    Raises:
        ValueError: "TokenNorm: expected kind in {...}, but got '...'".
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        check_choice("TokenNorm: expected kind", kind, ("layer", "batch", "batch_masked"))
        check_positive("TokenNorm: expected width", width)
        self.kind = kind
        self.width = width
        self.eps = 1e-5
        self.momentum = 0.1
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        batch = kind != "layer"
        self.register_buffer("running_mean", torch.zeros(width) if batch else None)
        self.register_buffer("running_var", torch.ones(width) if batch else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if batch else None)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Normalises x [B, L, width]; padding_mask: bool [B, L], True = padding."""
        mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if mean is None or var is None or batches is None:
            return F.layer_norm(x, [self.width], self.weight, self.bias, self.eps)
        if self.training:
            batches.add_(1)
            if self.kind == "batch_masked" and padding_mask is not None:
                return self._masked_batch_norm(x, padding_mask, mean, var)
        tokens = x.reshape(-1, self.width)
        return F.batch_norm(
            tokens, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps
        ).view_as(x)

    def _masked_batch_norm(
        self, x: Tensor, padding_mask: Tensor, running_mean: Tensor, running_var: Tensor
    ) -> Tensor:
        # Sums over all tokens with the padded ones selected away, not over a gathered selection:
        # shapes then depend on no data. In the dtype of the running averages, which autocast leaves
        # alone.
        padded = padding_mask.unsqueeze(-1)
        count = padding_mask.logical_not().sum()
        tokens = x.to(running_mean.dtype)
        mean = tokens.masked_fill(padded, 0.0).sum([0, 1]) / count.clamp_min(1)
        centred = tokens - mean
        squares = centred.masked_fill(padded, 0.0).square().sum([0, 1])
        variance = squares / count.clamp_min(1)
        with torch.no_grad():  # as nn.BatchNorm1d: the running variance is the unbiased one
            running_mean.lerp_(mean, self.momentum)
            running_var.lerp_(squares / (count - 1).clamp_min(1), self.momentum)
        return (centred * (variance + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        return f"kind={self.kind}, width={self.width}"
