"""Solutions as heads of a network, and back."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kktorch.convex._solver import certify


class Heads(NamedTuple):
    """``f(X) = sum_j g_j (w1_j' X w2_j) w3_j``, gate ``gate_id[j]`` for head j.

    Of sequences: ``f(X) = sum_j w3_j W1_j X W2_j`` and no gates.
    """

    w1: Tensor  #: [h, n], rows in the simplex; of sequences [h, n, n]
    w2: Tensor  #: [h, d]; of sequences [h, d, c]
    w3: Tensor  #: [h, c]; of sequences [h]
    gate_id: Tensor | None  #: int64 [h]


def recover_heads(Z: Tensor, h: int | None = None) -> Heads:
    """One head per active group of a solution; its objective is the optimum of the network.

    Args:
        Z: [P, c, n, d], or the blocks [2, c, d, n, n] of a sequence solution.
        h: number of heads; those that are not needed are zero. None: as many as active groups.

    Raises:
        ValueError: fewer heads than active groups.
    """
    if Z.dim() == 5:
        return Heads(*torch.ops.kktorch._convex_recover_sequence_heads(Z), None)
    return Heads(*torch.ops.kktorch._convex_recover_heads(Z, h or 0))


def heads_to_z(heads: Heads, P: int | None = None) -> Tensor:
    """The effective Z of heads: same predictions, and a penalty that is not larger."""
    if heads.gate_id is None:
        return torch.ops.kktorch._convex_sequence_heads_to_z(heads.w1, heads.w2, heads.w3)
    return torch.ops.kktorch._convex_heads_to_z(*heads, P or 0)


def reduce_heads(Z: Tensor, X: Tensor, gates: Tensor | None = None) -> Tensor:
    """At most N c active groups with the same predictions on X and no larger penalty."""
    return torch.ops.kktorch._convex_reduce_heads(Z, X, gates)


@dataclass(frozen=True)
class FactoredCertificate:
    """How far a network of heads is from the optimum of the convex program, at most."""

    objective: float  #: with the penalty of the heads as they are
    balanced: float  #: after the scaling between w2 and w3 that lowers it most
    F: float  #: of the effective Z
    D_own: float  #: lower bound from the network's own residual
    D: float  #: the best bound known, also from ``multipliers``

    @property
    def gap_own(self) -> float:
        return self.objective - self.D_own

    @property
    def gap(self) -> float:
        return self.objective - self.D


def certify_factored(
    X: Tensor,
    Y: Tensor,
    beta: float,
    heads: Heads,
    *,
    loss: str = "half_squared",
    gates: Tensor | None = None,
    multipliers: Tensor | None = None,
) -> FactoredCertificate:
    """Bounds for a network of any width whose penalty is that of the convex program.

    ``w1`` is projected onto the simplex in float64 first. ``multipliers`` of a convex solve make
    the bound tight at widths that can attain the optimum; at smaller ones it is still a bound.
    """
    w1 = torch.ops.kktorch.simplex_project(heads.w1.double())
    w2, w3 = heads.w2.double(), heads.w3.double()
    P = 1 if gates is None else gates.shape[1]
    Z = heads_to_z(Heads(w1, w2, w3, heads.gate_id), P)
    own = certify(X, Y, beta, Z, loss=loss, gates=gates)
    data_loss = own.F - beta * own.penalty
    size2, size3 = w2.norm(dim=1), w3.abs().sum(1)
    penalty = (size2.square() + size3.square()).sum().item() / 2
    best = own.D
    if multipliers is not None:
        best = certify(X, Y, beta, Z, loss=loss, gates=gates, multipliers=multipliers).D
    return FactoredCertificate(
        objective=data_loss + beta * penalty,
        balanced=data_loss + beta * (size2 * size3).sum().item(),
        F=own.F,
        D_own=own.D,
        D=best,
    )
