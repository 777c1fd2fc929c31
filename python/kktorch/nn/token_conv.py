"""Depth-wise convolution over the tokens of attention heads."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenConv(nn.Module):
    """One kernel w per head and channel, without bias, initially the identity.

    Convolution attention applies one to the queries and one to the keys. Zeros stand in for tokens
    that do not exist; the first ``num_special`` tokens pass unchanged and are seen by no other.

    Args:
        channels: heads times width.
        kind: "1d": ``y[t] = w[0] x[t-1] + w[1] x[t] + w[2] x[t+1]``; causal, the tap of the next
            token falls two back, ``y[t] = w[2] x[t-2] + w[0] x[t-1] + w[1] x[t]``, so that the
            initial kernel is the identity there, too. "2d": 3 x 3 on the grid of the tokens in rows
            of ``columns``.
        columns: "2d": width of the grid.
        num_special: number of leading tokens that are left alone.

    Parameter weight [channels, 1, 3] or [channels, 1, 3, 3], as in ``nn.Conv1d`` and ``nn.Conv2d``
    with as many groups as channels.
    """

    def __init__(self, channels: int, kind: str, columns: int, num_special: int) -> None:
        super().__init__()
        self.channels = channels
        self.kind = kind
        self.columns = columns
        self.num_special = num_special
        kernel = (channels, 1, 3) if kind == "1d" else (channels, 1, 3, 3)
        self.weight = nn.Parameter(nn.init.dirac_(torch.empty(kernel), groups=channels))

    def forward(
        self, x: Tensor, padding_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Convolves x [B, heads, L, width].

        Args:
            x: for "2d", L - num_special is a multiple of columns.
            padding_mask: bool [B, L], True = padding, counted as zeros whatever stands there.
            is_causal: "1d" only.
        """
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(1).unsqueeze(-1), 0.0)
        if x.size(2) <= self.num_special:
            return x
        y = x[:, :, self.num_special :].transpose(2, 3).flatten(1, 2)  # [B, channels, length]
        if self.kind == "2d":
            grid = y.unflatten(2, [y.size(2) // self.columns, self.columns])
            y = F.conv2d(grid, self.weight, padding=1, groups=self.channels).flatten(2)
        elif is_causal:
            y = F.conv1d(F.pad(y, [2, 0]), self.weight.roll(1, -1), groups=self.channels)
        else:
            y = F.conv1d(y, self.weight, padding=1, groups=self.channels)
        y = y.unflatten(1, [x.size(1), x.size(3)]).transpose(2, 3)
        if self.num_special == 0:
            return y
        return torch.cat([x[:, :, : self.num_special], y], 2)

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, kind={self.kind}, columns={self.columns}, "
            f"num_special={self.num_special}"
        )
