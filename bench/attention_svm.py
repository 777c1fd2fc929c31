"""What the suites of attention SVMs share: problems, peers, and the gate on certified gaps."""

import contextlib
import functools
import io

import numpy as np
import torch
from harness import TOTAL, Case, Contender, GateError
from kktorch import svm

DTYPES = {"float64": torch.float64}


def sizes(shape: str) -> tuple[int, int, int]:
    """n x T x d."""
    n, length, width = map(int, shape.split("x"))
    return n, length, width


def problem(shape: str, infeasible: bool = False):
    """Unit tokens and queries; selected is the argmax of a random W, or for an infeasible problem
    any token."""
    n, length, width = sizes(shape)
    generator = torch.Generator().manual_seed(1)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    unit = torch.nn.functional.normalize
    tokens, queries = unit(draw(n, length, width), dim=-1), unit(draw(n, width), dim=-1)
    w = draw(width, width)
    alpha = torch.einsum("ntd,nd->nt", tokens, queries @ w.T).argmax(1)
    if infeasible:
        alpha = torch.randint(length, (n,), generator=generator)
    return svm.cross(tokens, queries), alpha


def features(shape: str, sets, alpha) -> np.ndarray:
    """The explicit a_j z_j^T, [pairs, d^2]."""
    n, length, width = sizes(shape)
    tokens = sets.x.reshape(n, length, width)
    chosen = tokens[torch.arange(n), alpha]
    differences = chosen[:, None] - tokens
    keep = torch.arange(length)[None, :] != alpha[:, None]
    rows = differences[..., None] * sets.z[:, None, None, :]
    return rows[keep].reshape(n * (length - 1), width * width).numpy()


def gap(sets, alpha, w: np.ndarray, solution: svm.Result, norm: str) -> float:
    """The gap that ``w`` has with the multipliers of our solution, whose gap is far smaller."""
    width = sets.x.shape[1]
    w = torch.from_numpy(np.asarray(w, dtype=np.float64)).reshape(width, -1)
    return svm.certificate(*sets[:3], alpha, w, solution.lam, norm=norm).gap


def liblinear(rows: np.ndarray, tol: float):
    """Hard margin by a large penalty, with every second feature turned round as the other class."""
    from sklearn.svm import LinearSVC

    signs = np.where(np.arange(len(rows)) % 2, 1.0, -1.0)
    model = LinearSVC(C=1e6, loss="hinge", dual=True, fit_intercept=False, tol=tol, max_iter=100000)
    model.fit(rows * signs[:, None], signs)
    return model.coef_[0]


def cvxpy_solution(rows: np.ndarray, width: int, norm: str, solver: str, **options):
    import cvxpy

    w = cvxpy.Variable((width, rows.shape[1] // width))
    size = cvxpy.normNuc(w) if norm == "nuclear" else cvxpy.sum_squares(w)
    model = cvxpy.Problem(cvxpy.Minimize(size), [rows @ cvxpy.vec(w, order="C") >= 1])
    with contextlib.redirect_stdout(io.StringIO()):
        model.solve(solver=solver, **options)
    if w.value is None:
        raise RuntimeError(f"{solver}: {model.status}")
    return w.value


def clarabel(norm: str):
    """A peer: phases of (shape, sets, alpha, tol), explicit features, compilation included."""

    def phases(shape, sets, alpha, tol):
        rows, width = features(shape, sets, alpha), sizes(shape)[2]
        options = {f"tol_{name}": 0.1 * tol for name in ("gap_abs", "gap_rel", "feas")}
        return {TOTAL: lambda _: cvxpy_solution(rows, width, norm, "CLARABEL", **options)}

    return phases


def scs(norm: str, tolerances: tuple[float, ...]):
    """Likewise, with the loosest of the tolerances that reaches the gap, where one does."""

    def phases(shape, sets, alpha, tol):
        rows, width = features(shape, sets, alpha), sizes(shape)[2]

        def solve(eps):
            options = {"eps_abs": eps, "eps_rel": eps, "max_iters": 10**5}
            return cvxpy_solution(rows, width, norm, "SCS", **options)

        @functools.cache  # in the first step, where a peer that is missing is caught
        def accuracy() -> float:
            return loosest(tolerances, sets, alpha, tol, solve, norm)

        return {TOTAL: lambda _: solve(accuracy())}

    return phases


def loosest(tolerances, sets, alpha, tol, solve, norm="frobenius") -> float:
    """The first of ``tolerances`` with which ``solve`` reaches the gap ``tol``, or the last."""
    solution = svm.att_svm(*sets[:3], alpha, norm=norm, tol=1e-2 * tol)
    for each in tolerances[:-1]:
        try:
            if gap(sets, alpha, solve(each), solution, norm) <= tol:
                return each
        except RuntimeError:  # a solver that does not converge
            continue
    return tolerances[-1]


def svm_case(key: dict, norm: str, tol: float, peers: dict) -> Case:
    """Ours to the certified gap ``tol`` against peers that must reach it too.

    Args:
        peers: name -> function of (shape, sets, alpha, tol) that returns the phases of one step;
            the last phase returns W.
    """
    shape = key["shape"]
    sets, alpha = problem(shape)
    reference = svm.att_svm(*sets[:3], alpha, norm=norm, tol=1e-2 * tol if peers else tol)

    def ours(_):
        return svm.att_svm(*sets[:3], alpha, norm=norm, tol=tol)

    def check(contenders):
        errors = {}
        if not peers:  # the largest problems: solved once less
            errors["kktorch"] = {"gap": gap(sets, alpha, reference.w, reference, norm)}
        for each in contenders if peers else ():
            state = None
            for phase in each.phases.values():
                state = phase(state)
            w = state.w if isinstance(state, svm.Result) else state
            errors[each.name] = {"gap": gap(sets, alpha, w, reference, norm)}
        reached = errors["kktorch"]["gap"]
        if reference.status != "optimal" or not reached <= 1.01 * tol:
            raise GateError(f"{shape}: expected a certified gap of {tol}, but got {reached}")
        for name, error in errors.items():
            if not error["gap"] <= 10 * tol:
                notes[f"{name} at {shape}"] = f"gap {error['gap']:.0e} only"
        return errors

    notes = {}
    return Case(
        key=key,
        subject=Contender("kktorch", {TOTAL: ours}),
        peers=[Contender(name, phases(shape, sets, alpha, tol)) for name, phases in peers.items()],
        check=check,
        work={TOTAL: 0.0},
        notes=notes,
    )
