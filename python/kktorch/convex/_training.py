"""Training of the factored network, beside the program that bounds it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kktorch.convex._heads import Heads


@dataclass(frozen=True)
class Training:
    """``objective - D = gap`` bounds the distance from the optimum of the convex program."""

    heads: Heads  #: float64, the best that were seen, balanced
    objective: float
    D: float
    gap: float
    status: str  #: converged, stationary, max_escapes, insufficient_heads, interrupted
    iterations: int
    escapes: int
    history: Tensor  #: [iterations, 3] float64: iteration, seconds, objective


def train_factored(
    X: Tensor,
    Y: Tensor,
    beta: float,
    *,
    heads: int = 0,
    loss: str = "half_squared",
    gates: Tensor | None = None,
    classes: int = 0,
    optimiser: str = "palm",
    lr: float = 1e-2,
    max_iter: int = 1500,
    escape: bool = True,
    max_escapes: int = 5,
    tol_rel: float = 1e-6,
    seed: int = 1,
    start: Heads | None = None,
    multipliers: Tensor | None = None,
) -> Training:
    """Trains heads on ``sum of losses + beta/2 sum_j (|w2_j|^2 + |w3_j|_1^2)``, in float64.

    The objective is not convex: a stationary point can be far from optimal, and ``gap`` says how
    far at most, for every number of heads. Ctrl-C returns the best heads so far.

    Args:
        X: [N, n, d] float32 or float64.
        Y: [N, c], or class ids int64 [N] with "cross_entropy".
        heads: number of heads, where ``start`` is not given; head j has gate j mod P.
        optimiser: "palm" (proximal steps on w1, w2, w3 in turn; monotone), "adam" (full batch,
            w1 projected), "adam_softmax" (w1 = softmax of logits).
        lr: of Adam; it falls to 0 along a cosine.
        max_iter: cycles of palm or steps of Adam in a round.
        escape: after a round, a proximal step of the convex program on the effective Z, and heads
            of the result, at most ``max_escapes`` times.
        multipliers: of a convex solve, as a second bound.

    Raises:
        ValueError: a start whose heads are all zero, which is a saddle.
    """
    *parts, history, numbers, status = torch.ops.kktorch._convex_train_factored(
        X,
        Y,
        beta,
        loss,
        gates,
        classes,
        heads,
        optimiser,
        lr,
        max_iter,
        escape,
        max_escapes,
        tol_rel,
        seed,
        [] if start is None else list(start),
        multipliers,
    )
    objective, D, gap, iterations, escapes = numbers.tolist()
    return Training(
        Heads(*parts), objective, D, gap, status, int(iterations), int(escapes), history
    )
