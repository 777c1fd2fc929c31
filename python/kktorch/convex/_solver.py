"""The certified solver."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_NUMBERS = (
    "F",
    "D",
    "gap",
    "beta_max",
    "lip",
    "iterations",
    "reads",
    "backtracks",
    "restarts",
    "screened",
)


@dataclass(frozen=True)
class Solution:
    """What a solve found; a tolerance that was not reached is said in ``status``, not raised.

    ``F - D = gap`` bounds the distance of ``F`` from the optimum. With ``reduction="mean"`` all
    three are those of the mean.
    """

    Z: Tensor  #: [P, c, n, d]; of sequences the blocks C+ and C-: [2, c, d, n, n]
    F: float
    D: float
    gap: float
    status: str  #: converged, null_solution, max_iter, time_limit, precision_limit, interrupted
    beta: float
    beta_max: float
    multipliers: Tensor  #: the dual point Lambda, float64
    history: Tensor  #: [iterations, 4] float64: iteration, seconds, F, gap
    iterations: int
    reads: int  #: of the samples
    backtracks: int
    restarts: int
    screened: int  #: groups that were ruled out
    lip: float = field(repr=False)  #: for the next solve of the same problem; 0: not needed
    intercept: Tensor | None = None  #: [c], with ``center=True``

    @property
    def active_groups(self) -> int:
        """Groups (gate, output, token) that are not zero; of sequences, blocks."""
        norm = self.Z.flatten(-2).norm(dim=-1) if self.Z.dim() == 5 else self.Z.norm(dim=-1)
        return int((norm > 0).sum())

    @property
    def active_tokens(self) -> Tensor:
        """Positions with an active group, ascending."""
        if self.Z.dim() == 5:
            return (self.Z.flatten(0, 3) != 0).any(0).nonzero()[:, 0]
        return (self.Z.norm(dim=-1) > 0).flatten(0, 1).any(0).nonzero()[:, 0]

    @property
    def token_importance(self) -> Tensor:
        """Share of every position in the penalty, [n]; zeros for the null solution."""
        size = self.Z.norm(dim=-1).sum((0, 1)) if self.Z.dim() == 4 else self.Z.sum((0, 1, 2, 3))
        return size / size.sum().clamp_min(torch.finfo(size.dtype).tiny)


@dataclass(frozen=True)
class Certificate:
    """``F`` of a point, a lower bound ``D`` of the optimum, and their difference."""

    F: float
    D: float
    gap: float
    penalty: float
    multipliers: Tensor


def _centred(X, Y, loss, gates, penalty):
    P = 1 if gates is None else gates.shape[1]
    if loss not in ("half_squared", "squared") or gates is not None or penalty != "group":
        raise ValueError(
            f"solve: expected a squared loss without gates for center=true, but got {loss}, P = {P}"
        )
    return X - X.mean(0), Y - Y.mean(0)


def solve(
    X: Tensor,
    Y: Tensor,
    beta: float,
    *,
    loss: str = "half_squared",
    gates: Tensor | None = None,
    penalty: str = "group",
    tol_rel: float | None = None,
    tol_abs: float = 0.0,
    max_iter: int = 20000,
    screen_every: int = 10,
    time_limit: float | None = None,
    Z0: Tensor | None = None,
    lip: float | None = None,
    reduction: str = "sum",
    center: bool = False,
    num_values: int = 0,
    classes: int = 0,
) -> Solution:
    """The global optimum of convex attention, with a certificate.

    Minimises ``sum_i L(A_i, y_i) + beta * sum of the norms of the groups of Z``, with predictions
    ``A_il = sum_p gates_ip <Z[p, l], X_i>``. Ctrl-C returns the best point so far (status
    "interrupted").

    Args:
        X: [N, n, d] float32 or float64, or with ``num_values`` token ids int64 [N, n].
        Y: [N, c] of the dtype of X; "cross_entropy" also takes class ids int64 [N].
        beta: > 0.
        loss: "half_squared", "squared", "logistic" (targets -1 or +1), "cross_entropy".
        gates: [N, P] of zeros and ones (:func:`sample_gates`).
        penalty: "group", or "nuclear" (of the slices ``Z[p, :, k, :]``).
        tol_rel: relative gap to stop at; None: 1e-6 for float64, 1e-4 for float32.
        screen_every: iterations between screenings of groups; 0: none, and no working sets.
        time_limit: seconds.
        Z0, lip: start and Lipschitz constant of an earlier solve.
        reduction: "mean" solves the problem of the mean loss: beta is multiplied by N, and F, D,
            gap are divided by it.
        center: with a free intercept; squared losses without gates.
        num_values: size of the vocabulary of token ids, which count as one-hot features.
        classes: of class ids; 0: the largest id + 1.

    Raises:
        RuntimeError, ValueError: "solve: expected <what>, but got <values>".
    """
    return _solve(
        "solve",
        X,
        Y,
        beta,
        loss=loss,
        gates=gates,
        penalty=penalty,
        tol_rel=tol_rel,
        tol_abs=tol_abs,
        max_iter=max_iter,
        screen_every=screen_every,
        time_limit=time_limit,
        Z0=Z0,
        lip=lip,
        reduction=reduction,
        center=center,
        num_values=num_values,
        classes=classes,
    )


def solve_sequence(
    X: Tensor,
    Y: Tensor,
    beta: float,
    *,
    variant: str = "exact",
    loss: str = "half_squared",
    tol_rel: float | None = None,
    tol_abs: float = 0.0,
    max_iter: int = 20000,
    time_limit: float | None = None,
    Z0: Tensor | None = None,
    lip: float | None = None,
    reduction: str = "sum",
    classes: int = 0,
) -> Solution:
    """The sequence program: targets [N, n, c], or class ids [N, n].

    ``variant="substochastic"`` is a relaxation: rows of attention may sum to less than one, so its
    optimum is only a lower bound of the network's. The other arguments are those of :func:`solve`.
    """
    if variant not in ("exact", "substochastic"):
        raise ValueError(
            f"solve_sequence: expected variant exact or substochastic, but got {variant}"
        )
    return _solve(
        "solve_sequence",
        X,
        Y,
        beta,
        loss=loss,
        gates=None,
        penalty="sequence" if variant == "exact" else variant,
        tol_rel=tol_rel,
        tol_abs=tol_abs,
        max_iter=max_iter,
        screen_every=0,
        time_limit=time_limit,
        Z0=Z0,
        lip=lip,
        reduction=reduction,
        center=False,
        num_values=0,
        classes=classes,
    )


def _solve(
    function,
    X,
    Y,
    beta,
    *,
    loss,
    gates,
    penalty,
    tol_rel,
    tol_abs,
    max_iter,
    screen_every,
    time_limit,
    Z0,
    lip,
    reduction,
    center,
    num_values,
    classes,
):
    if reduction not in ("sum", "mean"):
        raise ValueError(f"{function}: expected reduction sum or mean, but got {reduction}")
    count = X.shape[0] if reduction == "mean" else 1
    data = _centred(X, Y, loss, gates, penalty) if center else (X, Y)
    Z, multipliers, history, numbers, status = torch.ops.kktorch._convex_solve(
        *data,
        float(beta) * count,
        loss,
        penalty,
        gates,
        num_values,
        classes,
        Z0,
        -1.0 if tol_rel is None else tol_rel,
        tol_abs * count,
        max_iter,
        screen_every,
        time_limit or 0.0,
        lip or 0.0,
        function,
    )
    named = dict(zip(_NUMBERS, numbers.tolist(), strict=True))
    for name in ("iterations", "reads", "backtracks", "restarts", "screened"):
        named[name] = int(named[name])
    for name in ("F", "D", "gap", "beta_max"):
        named[name] /= count
    history[:, 2:] /= count
    intercept = None
    if center:
        intercept = Y.mean(0) - torch.einsum("lkq,kq->l", Z[0], X.mean(0))
    return Solution(
        Z=Z,
        status=status,
        beta=beta,
        multipliers=multipliers,
        history=history,
        intercept=intercept,
        **named,
    )


def beta_max(
    X: Tensor,
    Y: Tensor,
    *,
    loss: str = "half_squared",
    gates: Tensor | None = None,
    penalty: str = "group",
    reduction: str = "sum",
    num_values: int = 0,
    classes: int = 0,
) -> float:
    """The smallest beta from which Z = 0 is optimal. ``penalty`` may also be "sequence"."""
    value = torch.ops.kktorch._convex_beta_max(X, Y, loss, penalty, gates, num_values, classes)
    return value / (X.shape[0] if reduction == "mean" else 1)


def solve_path(X: Tensor, Y: Tensor, rhos: Sequence[float], **options) -> list[Solution]:
    """Solutions at ``beta = rho * beta_max`` for descending rhos in (0, 1].

    Every solve starts from the solution before it. Options are those of :func:`solve`; ends early
    when a solve is interrupted.
    """
    rhos = [float(rho) for rho in rhos]
    descending = all(a > b for a, b in zip(rhos, rhos[1:], strict=False))
    if not (descending and all(0 < rho <= 1 for rho in rhos)):
        raise ValueError(f"solve_path: expected rhos in (0, 1], descending, but got {rhos}")
    names = ("loss", "gates", "penalty", "reduction", "num_values", "classes")
    top = beta_max(X, Y, **{name: options[name] for name in names if name in options})
    path = []
    for rho in rhos:
        path.append(solve(X, Y, rho * top, **options))
        options["Z0"] = path[-1].Z
        options["lip"] = path[-1].lip or options.get("lip")
        if path[-1].status == "interrupted":
            break
    return path


def certify(
    X: Tensor,
    Y: Tensor,
    beta: float,
    Z: Tensor,
    *,
    loss: str = "half_squared",
    gates: Tensor | None = None,
    penalty: str = "group",
    multipliers: Tensor | None = None,
    num_values: int = 0,
    classes: int = 0,
) -> Certificate:
    """F of any Z and a lower bound of the optimum, in float64.

    The bound is the best of those that the residual at Z and ``multipliers`` (of any solve of the
    same problem) give. ``penalty`` may also be "sequence" with blocks Z [2, c, d, n, n].
    """
    numbers, best = torch.ops.kktorch._convex_certify(
        X, Y, float(beta), Z, loss, penalty, gates, num_values, classes, multipliers
    )
    return Certificate(*numbers.tolist(), best)
