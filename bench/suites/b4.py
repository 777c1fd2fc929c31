"""Convex attention solved to a certified relative gap, float64. The shape is samples x tokens x
width - outputs - gates; rho = 0.1; targets of four random tokens with noise, half squared error, or
their largest output as a class (`entropy`). Every solution, of peers too, is certified by
`kktorch.convex.certify`; a peer gets the loosest of its tolerances that reaches the gap, and where
none does, the remarks say what it reached. `eager FISTA` is FISTA with restart in PyTorch, which
ours begins with: without working sets, Newton steps, screening and the single read. celer and skglm
solve one output at a time: half squared error is a problem for each of them, which they get one
after another; they have no cross-entropy with groups. scnn trains gated ReLU networks, whose groups
span all features: with gates and one token (1000 x 1 x 128) they are ours. cvxpy includes the
compilation of the problem, on the smallest shape.

There are 0.2 s without work before every contender. Without them whoever follows celer or skglm is
measured beside the threads of OpenBLAS, which spin for about 0.1 s after a call. A peer's point is
certified with the multipliers of a more exact solution of ours, so that it may stop where it has
no certificate of its own yet.

Gains are largest where few groups are active, which is what working sets are for. Where all are
(1000 x 1 x 128) or most (1000 x 29 x 12 and entropy), an iteration is the two products of a read,
bound by arithmetic, and eager FISTA comes within 1.15 to 1.3 of kktorch at 1000 x 1 x 128, half
squared. celer and skglm solve 5000 x 128 x 64 at 1e-6 alone, and entropy at 1e-6 and 1e-8 is not
measured there: a round takes a minute.
"""

import functools

import torch
from harness import TOTAL, Case, Contender, GateError
from kktorch import convex
from peers import group_lasso

NAME = "B4"
TITLE = "B4: the convex program"
SUBJECT = "kktorch"
MAIN_PEER = "eager FISTA"
PRICE = None
GROUPS = ["dtype", "variant"]
ROW = "shape"
CEILING = None
ERROR = "certified relative gap"
PLOTS = ["ratios", "gap"]
DTYPES = {"float64": torch.float64}
VARIANTS = {
    "half squared 1e-3": ("half_squared", 1e-3),
    "half squared 1e-6": ("half_squared", 1e-6),
    "half squared 1e-8": ("half_squared", 1e-8),
    "entropy 1e-3": ("cross_entropy", 1e-3),
    "entropy 1e-6": ("cross_entropy", 1e-6),
    "entropy 1e-8": ("cross_entropy", 1e-8),
}
_TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12)


def shapes(variant: str, quick: bool) -> list[str]:
    if quick:
        return ["40x5x3-2-1"]
    shapes = ["200x10x4-3-1", "1000x29x12-9-1", "1000x29x12-9-16", "5000x128x64-10-1"]
    return shapes + (["1000x1x128-9-16"] if variant.startswith("half") else [])


def sizes(shape: str) -> tuple[int, int, int, int, int]:
    """N, n, d, c, P."""
    features, c, P = shape.split("-")
    N, n, d = map(int, features.split("x"))
    return N, n, d, int(c), int(P)


def peers(shape: str, variant: str) -> list[str]:
    N, n, d, c, P = sizes(shape)
    names = [MAIN_PEER, f"compile({MAIN_PEER})"]
    # Of the largest shape in one variant: a round takes them 20 s there.
    if VARIANTS[variant][0] == "half_squared" and P == 1 and (N < 5000 or variant.endswith("1e-6")):
        names += ["celer", "skglm"]
    if VARIANTS[variant][0] == "half_squared" and P > 1 and n == 1:
        names += ["scnn"]
    return names + (["cvxpy + Clarabel"] if N * n * d * c * P <= 10**5 else [])


def work(shape: str, variant: str) -> dict[str, float]:
    return {TOTAL: 0.0}


def problem(shape: str, loss: str):
    """X, Y, gates (or None)."""
    N, n, d, c, P = sizes(shape)
    generator = torch.Generator().manual_seed(1)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    X = draw(N, n, d)
    Z = torch.zeros(1, c, n, d, dtype=torch.float64)
    Z[0, :, torch.randperm(n, generator=generator)[:4]] = draw(c, min(4, n), d)
    Y = torch.ops.kktorch.convex_predict(X, Z) + draw(N, c)
    if loss == "cross_entropy":
        Y = Y.argmax(1)
    # A gate that is open everywhere is none of scnn's.
    gates = convex.sample_gates(X, P, seed=1, include_open=n > 1) if P > 1 else None
    return X, Y, gates


def case(shape: str, dtype: str, variant: str) -> Case:
    loss, tol = VARIANTS[variant]
    X, Y, gates = problem(shape, loss)
    c = sizes(shape)[3]
    options = {"loss": loss, "gates": None if gates is None else gates.pattern}
    if loss == "cross_entropy":
        options["classes"] = c
    beta = 0.1 * convex.beta_max(X, Y, **options)
    best = convex.solve(X, Y, beta, tol_rel=min(1e-10, 1e-2 * tol), **options)
    torch._dynamo.reset()

    def gap(Z) -> float:
        bound = convex.certify(X, Y, beta, Z, multipliers=best.multipliers, **options)
        return bound.gap / bound.F

    def ours(_):
        return convex.solve(X, Y, beta, tol_rel=tol, **options).Z

    def contender(name):
        solver = group_lasso.SOLVERS[name]

        @functools.cache  # in the first step, where a peer that is missing is caught
        def accuracy():
            solve = solver(X, Y, beta, loss, gates, c)
            for each in _TOLERANCES:
                if gap(solve(each)) <= tol:
                    break
            return solve, each

        def step(_):
            solve, tolerance = accuracy()
            return solve(tolerance)

        return Contender(name, {TOTAL: step})

    def check(contenders):
        errors = {each.name: {"gap": gap(each.phases[TOTAL](None))} for each in contenders}
        if not errors[SUBJECT]["gap"] <= tol:
            raise GateError(f"{shape}: expected a gap of {tol}, but got {errors[SUBJECT]['gap']}")
        for name, error in errors.items():
            if error["gap"] > tol:
                notes[f"{name} at {shape}"] = f"gap {error['gap']:.0e} only"
        return errors

    notes = {}
    return Case(
        key={"shape": shape, "dtype": dtype, "variant": variant},
        subject=Contender(SUBJECT, {TOTAL: ours}),
        peers=[contender(name) for name in peers(shape, variant)],
        check=check,
        work=work(shape, variant),
        notes=notes,
        rest=0.2,  # threads of OpenBLAS spin for a tenth of a second after celer and skglm
    )
