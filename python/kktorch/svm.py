"""Attention SVMs with certificates.

Query q, a vector ``z[q]`` of size dz, sees the tokens ``x[tok[e]]`` (or ``x[e]``) of size dx for
the entries ``row_ptr[q] <= e < row_ptr[q + 1]``. With token ``alpha[q]`` selected, its SVM
is

    min |W|   such that   (x[q, alpha[q]] - x[q, t]) @ W @ z[q] >= 1   for all q, t != alpha[q]

in the Frobenius or the nuclear norm (arXiv 2308.16898). Its margin is 1 / min |W|; every result
holds a bracket ``lower <= margin <= upper`` that :func:`certificate` recomputes from x, z, W and
the multipliers alone. Solvers run on the CPU in float64.
"""

import math
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kktorch._margin_tracker import (  # noqa: F401
    LayerTracker,
    MarginRecord,
    MarginTracker,
    bracket_figure,
)

_STATUSES = ("optimal", "infeasible", "not_certified", "trivial")
_METHODS = ("", "oracle", "dcd", "dcd+polish", "dcd+polish+finish", "pdhg")
_METHODS += ("dcd+interior", "dcd+interior+polish", "dcd+interior+polish+finish", "farkas")
_REASONS = ("", "zero_pair", "interrupted", "time_limit")
# detail::SvmInfo of ops/svm_solve.h
_INFO = (
    "status lower upper gap cosine kappa rho min_margin norm dual_norm sum_lam margin_error rank "
    "mu support_resolved epochs iterations zero_pairs method reason"
).split()

_svm_solve = torch.ops.kktorch.svm_solve.default


class TokenSets(NamedTuple):
    """x [N, dx], z [Q, dz], row_ptr int64 [Q + 1], tok int64 [nnz] or None."""

    x: Tensor
    z: Tensor
    row_ptr: Tensor
    tok: Tensor | None = None


def cross(tokens: Tensor, queries: Tensor) -> TokenSets:
    """Inputs ``tokens`` [n, T, dx] with one query each, ``queries`` [n, dz]."""
    n, length, width = tokens.shape
    return TokenSets(tokens.reshape(n * length, width), queries, torch.arange(n + 1) * length)


def self_attention(tokens: Tensor, position: int = 0) -> TokenSets:
    """Inputs ``tokens`` [n, T, d]; token ``position`` of each is its query."""
    return cross(tokens, tokens[:, position])


def sequence(tokens: Tensor, causal: bool = False) -> TokenSets:
    """Every token of ``tokens`` [n, T, d] is a query, over its input or up to itself."""
    n, length, width = tokens.shape
    rows = tokens.reshape(n * length, width)
    mask = torch.ones(length, length, dtype=torch.bool)
    seen = (mask.tril() if causal else mask).nonzero()[:, 1]
    sizes = torch.arange(1, length + 1) if causal else torch.full((length,), length)
    tok = (torch.arange(n)[:, None] * length + seen).flatten()
    row_ptr = torch.nn.functional.pad(sizes.repeat(n).cumsum(0), (1, 0))
    return TokenSets(rows, rows, row_ptr, tok)


@dataclass(frozen=True)
class Certificate:
    """What W and multipliers prove (``lower`` needs W alone, ``upper`` the multipliers alone).

    Attributes:
        lower, upper: bracket of the margin 1 / min |W|; a margin of 0 means infeasible.
        gap: 1 - (lower / upper)^2, nuclear 1 - lower / upper; 1 while lower <= 0.
        cosine: cos(W, solution) is at least this (Frobenius; NaN while lower <= 0).
        kappa: every feasible W has rho |W|_F >= kappa, rho the largest |x_alpha - x_t| |z|.
        norm: of W, in the norm of the problem; min_margin: the smallest margin of W.
        rank: singular values of W above 1e-4 of the largest.
        mu: singular values of the dual matrix within 1e-4 of its largest. In the nuclear norm, no
            solution has a rank above the true multiplicity.
        support_resolved: the pairs at margin 1 are known exactly (Frobenius).
    """

    lower: float
    upper: float
    gap: float
    cosine: float
    kappa: float
    rho: float
    min_margin: float
    norm: float
    dual_norm: float
    sum_lam: float
    margin_error: float
    rank: int
    mu: int
    support_resolved: bool
    norm_name: str = "frobenius"

    @property
    def rank_certified(self) -> bool:
        """The rank of every nuclear-norm solution is ``rank``."""
        return self.norm_name == "nuclear" and self.gap <= 1e-7 and self.rank == self.mu

    def __repr__(self) -> str:
        return (
            f"Certificate({self.norm_name}: {self.lower:.6g} <= margin <= {self.upper:.6g}, "
            f"gap {self.gap:.1e})"
        )


@dataclass(frozen=True, repr=False)
class Result:
    """A solved attention SVM. The fields of :class:`Certificate` are its attributes as well.

    Attributes:
        status: "optimal" (gap <= tol, smallest margin of w is 1), "infeasible" (lam proves that
            every feasible W has rho |W|_F >= kappa >= 1e7), "not_certified" (the best iterate: read
            nothing but its bracket), "trivial" (no pair: w = 0).
        w: [dx, dz]; None if infeasible.
        lam: [nnz] multipliers, 0 at selected entries.
        nu: [nnz] multipliers of equalities between selected tokens.
        method, reason: solvers that were used; why it ended otherwise ("zero_pair",
            "interrupted", "time_limit").
    """

    status: str
    w: Tensor | None
    lam: Tensor
    nu: Tensor
    certificate: Certificate
    epochs: int
    iterations: int
    zero_pairs: int
    method: str
    reason: str

    def __getattr__(self, name: str):
        if name in Certificate.__dataclass_fields__ or name == "rank_certified":
            return getattr(self.certificate, name)
        raise AttributeError(f"Result has no attribute {name!r}")

    def __repr__(self) -> str:
        c = self.certificate
        what = f"{self.status}, {c.norm_name}"
        if self.status == "infeasible":
            text = f"{what}: every feasible W has rho |W|_F >= {c.kappa:.3g}"
        elif self.status == "trivial":
            text = f"{what}: no pair of tokens, w = 0"
        elif math.isnan(c.lower):
            text = f"{what}: |w| = {c.norm:.6g}, KKT residual {c.gap:.1e}"
        else:
            text = (
                f"{what}: {c.lower:.6g} <= margin <= {c.upper:.6g}, gap {c.gap:.1e}, rank {c.rank}"
            )
        reason = f", {self.reason}" if self.reason else ""
        return f"{type(self).__name__}({text}; {self.method or 'no solver'}{reason})"


@dataclass(frozen=True, repr=False)
class GenResult(Result):
    """A solved attention SVM with several selected tokens per query.

    Attributes:
        w_fin: finite part of minimum norm whose logits inside the selection differ by log(s_a/s_b);
            None without probabilities.
        fin_residual: |differences of w_fin - wanted| / |wanted|.
    """

    w_fin: Tensor | None = None
    fin_residual: float = math.nan
    _problem: tuple = field(default=(), repr=False)

    def project(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of ``w`` in S_fin (what the equalities see), and orthogonal to it."""
        x, z, row_ptr, sel, tok = self._problem
        w = w.detach().double()
        inside = torch.ops.kktorch.svm_finite_part(x, z, row_ptr, sel, w=w, tok=tok)[0]
        return inside, w - inside


def _certificate(info: dict, norm: str) -> Certificate:
    values = {name: info[name] for name in _INFO[1:12]}
    return Certificate(
        **values,
        rank=int(info["rank"]),
        mu=int(info["mu"]),
        support_resolved=bool(info["support_resolved"]),
        norm_name=norm,
    )


def _interruptible(solve, entries: int, unknowns: int):
    """Runs ``solve`` so that Ctrl-C ends it with its best certificate. Small problems take no time,
    and a thread of their own would take more."""
    small = entries <= 512 or entries * unknowns <= 2**17
    if small or threading.current_thread() is not threading.main_thread():
        return solve()
    outcome: list = []
    finished = threading.Event()  # Thread.join may forget its thread when it is interrupted

    def run():
        try:
            outcome.append((solve(), None))
        except BaseException as error:  # handed to the caller's thread
            outcome.append((None, error))
        finally:
            finished.set()

    threading.Thread(target=run, name="kktorch-svm").start()
    while not finished.is_set():
        try:
            finished.wait(0.1)  # without a limit, a signal to another thread would wake nobody
        except KeyboardInterrupt:
            torch.ops.kktorch._svm_cancel()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def _solve(x, z, row_ptr, selection, options) -> dict:
    given = {name: value for name, value in options.items() if value is not None}
    w, lam, nu, info = _interruptible(
        lambda: _svm_solve(x, z, row_ptr, selection, **given),
        given.get("tok", x).shape[0],
        x.shape[-1] * z.shape[-1],
    )
    numbers = dict(zip(_INFO, info.tolist(), strict=True))
    status = _STATUSES[int(numbers["status"])]
    return {
        "status": status,
        "w": None if status == "infeasible" else w,
        "lam": lam[:0] if status == "trivial" else lam,
        "nu": nu,
        "certificate": _certificate(numbers, options["norm"]),
        "epochs": int(numbers["epochs"]),
        "iterations": int(numbers["iterations"]),
        "zero_pairs": int(numbers["zero_pairs"]),
        "method": _METHODS[int(numbers["method"])],
        "reason": _REASONS[int(numbers["reason"])],
    }


def att_svm(
    x: Tensor,
    z: Tensor,
    row_ptr: Tensor,
    alpha: Tensor,
    *,
    tok: Tensor | None = None,
    h: Tensor | None = None,
    lam0: Tensor | None = None,
    norm: str = "frobenius",
    method: str = "auto",
    tol: float | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    **settings,
) -> Result:
    """Solves the attention SVM of one selected token per query.

    Args:
        x: [N, dx] float32 or float64, CPU.
        z: [Q, dz], dtype of ``x``.
        row_ptr: int64 [Q + 1].
        alpha: int64 [Q], position of the selected token in its set.
        tok: int64 [nnz], rows of x that the entries are.
        h: [nnz] right-hand sides >= 0 in place of 1 (Frobenius, method "auto" or "oracle").
        lam0: [nnz] start of the multipliers.
        norm: "frobenius" or "nuclear".
        method: "auto", "oracle", "dcd" or "pdhg".
        tol: of the certified gap; 1e-10, nuclear 1e-6.
        seed: of the order of coordinates. The same seed gives the same bits.
        time_limit: seconds.
        **settings: max_epochs, max_iters, inner, check_every, polish_max, kappa_max, tol_sv,
            drop_zero_pairs.

    Ctrl-C ends the solve; the result then holds the best certificate (reason "interrupted").

    Raises:
        RuntimeError, ValueError: "svm_solve: expected <what>, but got <values>".
    """
    options = {
        "tok": tok,
        "h": h,
        "lam0": lam0,
        "norm": norm,
        "method": method,
        "tol": tol,
        "seed": seed,
        "time_limit": time_limit,
        **settings,
    }
    return Result(**_solve(x, z, row_ptr, alpha, options))


def gen_svm(
    x: Tensor,
    z: Tensor,
    row_ptr: Tensor,
    sel: Tensor,
    *,
    s: Tensor | None = None,
    tok: Tensor | None = None,
    lam0: Tensor | None = None,
    method: str = "auto",
    tol: float | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    **settings,
) -> GenResult:
    """Solves the attention SVM of several selected tokens per query (Frobenius norm).

    ``sel`` is bool [nnz]. Selected tokens of a query have equal logits under ``w``, and exceed its
    masked tokens by 1. ``s`` [nnz], probabilities that are positive on the selection, gives the
    finite part ``w_fin``. Other arguments as of :func:`att_svm`.
    """
    options = {
        "tok": tok,
        "lam0": lam0,
        "norm": "frobenius",
        "method": method,
        "tol": tol,
        "seed": seed,
        "time_limit": time_limit,
        **settings,
    }
    if sel.dtype != torch.bool:
        raise ValueError(f"gen_svm: expected sel bool [nnz], but got {sel.dtype}")
    solved = _solve(x, z, row_ptr, sel, options)
    w_fin, residual = None, math.nan
    if s is not None:
        w_fin, residual = torch.ops.kktorch.svm_finite_part(x, z, row_ptr, sel, s=s, tok=tok)
        residual = residual.item()
    return GenResult(
        **solved, w_fin=w_fin, fin_residual=residual, _problem=(x, z, row_ptr, sel, tok)
    )


@dataclass(frozen=True)
class JointResult:
    """A head v and a prompt p for the selected tokens.

    Attributes:
        v: min |v| with ``labels_q v.r_q >= 1``, r_q the selected token of query q; ``v.w`` [dx, 1].
        p: the prompt SVM with margin 1 where q is a support vector of v, and 0 elsewhere.
        support: bool [Q], the support vectors of v.
    """

    v: Result
    p: Result | None  # None if v is not optimal
    support: Tensor | None


def joint_svm(
    x: Tensor,
    row_ptr: Tensor,
    alpha: Tensor,
    labels: Tensor,
    *,
    keys: Tensor | None = None,
    tok: Tensor | None = None,
    tol_sv: float = 1e-6,
) -> JointResult:
    """The directions of a head and a prompt that are trained together (arXiv 2306.13596).

    Args:
        x: [N, dx] tokens; keys [N, dk] are what the prompt meets, by default the tokens.
        alpha: int64 [Q], position of the selected token in its set.
        labels: [Q], +1 or -1.
        tol_sv: a margin of v up to ``1 + tol_sv`` makes a support vector.

    Raises:
        RuntimeError, ValueError: "joint_svm: expected labels +1 or -1, but got <value> at <query>",
            and as :func:`att_svm`.
    """
    wrong = (labels.abs() != 1).nonzero()
    if len(wrong) > 0:
        at = int(wrong[0])
        raise ValueError(
            f"joint_svm: expected labels +1 or -1, but got {labels[at].item():g} at {at}"
        )
    queries = len(row_ptr) - 1
    one = torch.ones(queries, 1, dtype=x.dtype)
    entry = row_ptr[:-1] + alpha
    features = labels[:, None].to(x.dtype) * x[entry if tok is None else tok[entry]]
    # Margin of the feature over the token 0.
    pairs = torch.stack([features, torch.zeros_like(features)], 1).flatten(0, 1)
    v = att_svm(pairs, one, 2 * torch.arange(queries + 1), alpha.new_zeros(queries))
    if v.status != "optimal":
        return JointResult(v, None, None)
    support = (features.double() @ v.w).squeeze(1) <= 1 + tol_sv
    h = support.to(x.dtype).repeat_interleave(row_ptr.diff())
    keys = x if keys is None else keys
    return JointResult(v, att_svm(keys, one.to(keys.dtype), row_ptr, alpha, tok=tok, h=h), support)


def certificate(
    x: Tensor,
    z: Tensor,
    row_ptr: Tensor,
    selection: Tensor,
    w: Tensor,
    lam: Tensor,
    *,
    tok: Tensor | None = None,
    norm: str = "frobenius",
    tol_sv: float = 1e-6,
) -> Certificate:
    """The bracket that ``w`` [dx, dz] and ``lam`` [nnz] >= 0 prove, from x and z alone.

    ``selection`` is alpha (int64 [Q]) or sel (bool [nnz]). Any ``w`` and any ``lam`` may be given.
    """
    info = torch.ops.kktorch.svm_certificate(
        x, z, row_ptr, selection, w, lam, tok=tok, norm=norm, tol_sv=tol_sv
    )
    return _certificate(dict(zip(_INFO, info.tolist(), strict=True)), norm)
