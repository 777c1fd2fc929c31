"""Groups of heads of one scale: take the heads of a group out, put the results back.

For scripted modules, too: plain functions of tensors and lists.
"""

import torch
from torch import Tensor


def group_heads(scales: list[int]) -> tuple[list[int], list[list[int]]]:
    """The distinct scales in the order of first appearance, and the heads of each."""
    groups: dict[int, list[int]] = {}
    for head, scale in enumerate(scales):
        groups.setdefault(scale, []).append(head)
    return list(groups), list(groups.values())


def head_places(groups: list[list[int]]) -> list[int]:
    """Place of every head where the groups follow one another."""
    order = [head for heads in groups for head in heads]
    return sorted(range(len(order)), key=order.__getitem__)


def take_heads(t: Tensor, dim: int, heads: list[int], rows: int) -> Tensor:
    """Heads ``heads`` of dimension ``dim``, where every head is ``rows`` neighbours.

    A view if the heads are neighbours, too; slices otherwise, because an index tensor would have to
    be copied to the device.
    """
    if heads == [heads[0] + i for i in range(len(heads))]:
        return t.narrow(dim, heads[0] * rows, len(heads) * rows)
    return torch.cat([t.narrow(dim, head * rows, rows) for head in heads], dim)


def merge_heads(parts: list[Tensor], places: list[int], rows: int) -> Tensor:
    """The inverse of take_heads for dimension 1 of every group's [B, heads, L, width].

    Stored (B, L, heads, width).
    """
    if len(parts) == 1:
        return parts[0]
    together = torch.cat([part.transpose(1, 2) for part in parts], 2)
    return take_heads(together, 2, places, rows).transpose(1, 2)
