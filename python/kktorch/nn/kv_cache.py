"""State of incremental decoding of one attention layer."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kktorch.nn._head_groups import group_heads
from kktorch.nn._option_checks import check_positive


@dataclass
class KVCacheGroup:
    """Key heads of one scale s. W windows of s tokens fit in the capacity.

    ``key``, ``value`` [B, heads, num_special + W, D or Dv]: special tokens, then the mean of every
    finished window. ``key_tail``, ``value_tail`` [B, heads, s - 1, D or Dv]: the tokens of the
    window in progress.
    """

    scale: int
    heads: list[int]
    key: Tensor
    value: Tensor
    key_tail: Tensor
    value_tail: Tensor


class KVCache:
    """What a chunk of new tokens needs of those before it; :class:`AttentionBNSH` makes one.

    Keys are stored raw: what Attention-BN does to them sits in the query.

    Args:
        batch: number of sequences.
        capacity: tokens per sequence.
        head_dim: width D of keys.
        value_head_dim: width Dv of values.
        scales: window of every key head; 1: its tokens are stored as they are.
        num_special: leading tokens that are windows of their own.
        dtype: of the layer.
        device: of the layer.

    Attributes:
        groups: one :class:`KVCacheGroup` per distinct scale.
        lengths: tokens of each sequence in the cache.
        length: the same, int64 [B] on the device.
        mean: [B, Hk, D] of the keys, float64 for float64 layers, else float32. Attention-BN only.
        m2: [B, Hk, D], sum of the squared deviations from the mean.

    Raises:
        ValueError: "KVCache: expected <option>, but got <value>".
    """

    def __init__(
        self,
        batch: int,
        capacity: int,
        head_dim: int,
        value_head_dim: int,
        scales: Sequence[int],
        *,
        num_special: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check_positive("KVCache: expected batch", batch)
        check_positive("KVCache: expected capacity", capacity)
        self.capacity = capacity
        self.num_special = num_special
        self.lengths = [0] * batch
        special = min(num_special, capacity)

        def zeros(heads: int, entries: int, width: int) -> Tensor:
            return torch.zeros(batch, heads, entries, width, dtype=dtype, device=device)

        self.groups = []
        for scale, heads in zip(*group_heads(list(scales)), strict=True):
            entries, tail = special + (capacity - special) // scale, scale - 1
            widths = [(entries, head_dim), (entries, value_head_dim)]
            widths += [(tail, head_dim), (tail, value_head_dim)]
            state = (zeros(len(heads), n, width) for n, width in widths)
            self.groups.append(KVCacheGroup(scale, heads, *state))
        self.length = torch.zeros(batch, dtype=torch.long, device=device)
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        self.mean = torch.zeros(batch, len(scales), head_dim, dtype=acc, device=device)
        self.m2 = torch.zeros_like(self.mean)

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    def reorder(self, index: Tensor) -> None:
        """Sequence i becomes what sequence index[i] was, as beam search needs it.

        Args:
            index: int64 [new batch], on the device of the cache or on the host.
        """
        if index.dim() != 1 or index.dtype != torch.long:
            raise RuntimeError(
                "KVCache: expected index int64 [new batch], "
                f"but got {index.dtype} {list(index.shape)}"
            )
        on_host = index.tolist()
        for b in on_host:
            if not 0 <= b < self.batch:
                raise IndexError(f"KVCache: expected index in [0, {self.batch}), but got {b}")
        on_device = index.to(self.length.device)
        self._transform(lambda t: t.index_select(0, on_device))
        self.lengths = [self.lengths[b] for b in on_host]

    def sample(self, b: int) -> "KVCache":
        """The state of one sequence, as views: writing there writes here, except for lengths."""
        one = copy.copy(self)
        one.groups = [copy.copy(group) for group in self.groups]
        one._transform(lambda t: t.narrow(0, b, 1))
        one.lengths = [self.lengths[b]]
        return one

    def check_room(self, tokens: Sequence[int]) -> None:
        """Raises a RuntimeError if tokens[b] more do not fit for some sequence b."""
        need = max(n + new for n, new in zip(self.lengths, tokens, strict=True))
        if need > self.capacity:
            raise RuntimeError(f"KVCache: expected capacity >= {need}, but got {self.capacity}")

    def advance(self, tokens: Sequence[int]) -> None:
        """Counts tokens that have been written, in ``lengths`` only."""
        self.lengths = [n + new for n, new in zip(self.lengths, tokens, strict=True)]

    def _transform(self, function: Callable[[Tensor], Tensor]) -> None:
        for group in self.groups:
            for name in ("key", "value", "key_tail", "value_tail"):
                setattr(group, name, function(getattr(group, name)))
        for name in ("length", "mean", "m2"):
            setattr(self, name, function(getattr(self, name)))
