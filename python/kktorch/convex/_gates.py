"""Fixed gates ``1{u1' X_i u2 >= 0}``."""

from typing import NamedTuple

import torch
from torch import Tensor

from kktorch.convex._solver import Solution


class Gates(NamedTuple):
    u1: Tensor  #: [P, n] float64
    u2: Tensor  #: [P, d] float64
    pattern: Tensor  #: bool [N, P] on the samples that they were drawn for


class GateReport(NamedTuple):
    """What candidate gates would change; the verdict covers these candidates and no others."""

    violation: Tensor  #: [M]; at most beta: the gate can lower F by at most the gap
    decrease: Tensor  #: [M]; the optimum with the gate is at most F - decrease
    bound: Tensor  #: [M]; and at least this
    all_gates: float  #: lower bound of the program with every gate there is


def sample_gates(
    X: Tensor, P: int, *, seed: int, dist: str = "gaussian", include_open: bool = True
) -> Gates:
    """At most P distinct gates from 20 P draws; with ``include_open``, gate 0 is open everywhere.

    Args:
        X: [N, n, d].
        dist: "gaussian", or "simplex" for u1.
    """
    return Gates(*torch.ops.kktorch._convex_sample_gates(X, P, seed, dist, include_open))


def apply_gates(X: Tensor, gates: Gates) -> Tensor:
    """The patterns bool [N, P] of stored gates on other samples."""
    return torch.ops.kktorch._convex_apply_gates(X, gates.u1, gates.u2)


def gate_report(
    X: Tensor,
    Y: Tensor,
    solution: Solution,
    candidates: Tensor,
    *,
    loss: str = "half_squared",
    gates: Tensor | None = None,
    num_values: int = 0,
) -> GateReport:
    """What the patterns ``candidates`` [N, M] would change about a solution with ``gates``."""
    return GateReport(
        *torch.ops.kktorch._convex_gate_report(
            X,
            Y,
            float(solution.beta),
            solution.Z,
            solution.multipliers,
            candidates,
            loss,
            gates,
            num_values,
        )
    )
