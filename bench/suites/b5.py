"""Attention SVMs in the Frobenius norm, solved from tokens and queries to a certified gap of 1e-6
in float64; shapes are n x T x d (n queries with T tokens each, n (T - 1) pairs). LIBLINEAR gets the
explicit features a z^T, without the time of building them, and once with it; it solves the hard
margin by a penalty of 1e6, with the loosest tolerance that reaches the gap, where one does. cvxpy
includes the compilation of the problem. `infeasible`: random selected tokens, the time to a proof
that no W exists; only the conic solver can tell. `gap 1e-3`: a problem of 1.26 million pairs. Where
a peer's W has a larger gap than asked for, the remarks say so. Larger shapes leave out peers that
would need too much memory or time. Peak memory is that of a solve, without x and z.
"""

import functools

import attention_svm
from harness import TOTAL, Case, Contender, GateError
from kktorch import svm

NAME = "B5"
TITLE = "Attention SVM, Frobenius norm"
SUBJECT = "kktorch"
MAIN_PEER = "cvxpy + Clarabel"
PRICE = None
GROUPS = ["dtype", "variant"]
ROW = "shape"
CEILING = None
ERROR = "gap of W"
PLOTS = []
DTYPES = attention_svm.DTYPES
VARIANTS = {"feasible": 1e-6, "infeasible": None, "gap 1e-3": 1e-3}  # the gap
_LARGEST = 2**24  # numbers of the explicit features that LIBLINEAR copies quickly
_CONIC = 2**18  # and that an interior-point method factorizes quickly
_LINEAR = "LIBLINEAR"
_SCS = "cvxpy + SCS"


def shapes(variant: str, quick: bool) -> list[str]:
    if quick:
        return ["12x6x3"] if variant == "infeasible" else ["4x4x3"]
    if variant == "infeasible":
        return ["100x16x8", "200x16x16"]
    if variant == "gap 1e-3":
        return ["20000x64x64"]
    return ["6x8x10", "30x8x24", "50x8x64", "100x16x32", "50x8x256", "500x32x64", "1000x64x64"]


def peers(shape: str, variant: str) -> list[str]:
    n, length, width = attention_svm.sizes(shape)
    numbers = n * (length - 1) * width**2
    names = [MAIN_PEER] if numbers <= _CONIC else []
    if variant != "infeasible":
        names += [_LINEAR, f"{_LINEAR} + features"] if numbers <= 4 * _LARGEST else []
        names += [_SCS] if numbers <= _CONIC else []
    return names


def work(shape: str, variant: str) -> dict[str, float]:
    return {TOTAL: 0.0}


def case(shape: str, dtype: str, variant: str) -> Case:
    key = {"shape": shape, "dtype": dtype, "variant": variant}
    tol = VARIANTS[variant]
    if tol is None:
        return _infeasible(key)
    makers = {
        MAIN_PEER: attention_svm.clarabel("frobenius"),
        _LINEAR: _liblinear,
        f"{_LINEAR} + features": _liblinear_with_features,
        _SCS: attention_svm.scs("frobenius", (1e-6, 1e-7)),
    }
    chosen = {name: makers[name] for name in peers(shape, variant)}
    return attention_svm.svm_case(key, "frobenius", tol, chosen)


def _liblinear(shape, sets, alpha, tol):
    rows = attention_svm.features(shape, sets, alpha)
    accuracy = _accuracy(shape, sets, alpha, tol)
    return {TOTAL: lambda _: attention_svm.liblinear(rows, accuracy())}


def _liblinear_with_features(shape, sets, alpha, tol):
    accuracy = _accuracy(shape, sets, alpha, tol)

    def step(_):
        return attention_svm.liblinear(attention_svm.features(shape, sets, alpha), accuracy())

    return {TOTAL: step}


def _accuracy(shape, sets, alpha, tol):
    @functools.cache  # in the first step, where a peer that is missing is caught
    def accuracy() -> float:
        rows = attention_svm.features(shape, sets, alpha)

        def solve(eps):
            return attention_svm.liblinear(rows, eps)

        return attention_svm.loosest((1e-2, 1e-4, 1e-6, 1e-8), sets, alpha, tol, solve)

    return accuracy


def _infeasible(key) -> Case:
    sets, alpha = attention_svm.problem(key["shape"], infeasible=True)
    rows = attention_svm.features(key["shape"], sets, alpha)

    def ours(_):
        return svm.att_svm(*sets[:3], alpha)

    def clarabel(_):
        import cvxpy

        w = cvxpy.Variable(rows.shape[1])
        model = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(w)), [rows @ w >= 1])
        model.solve(solver=cvxpy.CLARABEL)
        return model.status

    def check(contenders):
        result = ours(None)
        if result.status != "infeasible" or not result.kappa >= 1e7:
            raise GateError(f"{key['shape']}: expected a proof of infeasibility, but got {result}")
        for each in contenders[1:]:
            if (status := each.phases[TOTAL](None)) != "infeasible":
                notes[f"{each.name} at {key['shape']}"] = f"status {status}"
        return {"kktorch": {"1 / kappa": 1 / result.kappa}}

    notes = {}
    return Case(
        key=key,
        subject=Contender(SUBJECT, {TOTAL: ours}),
        peers=[Contender(MAIN_PEER, {TOTAL: clarabel})],
        check=check,
        work={TOTAL: 0.0},
        notes=notes,
    )
