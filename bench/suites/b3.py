"""Projection of rows onto the simplex, float32, 2^20 numbers; the shape is rows x length. Rows:
Gaussian, uniform, one-hot, rounded to quarters (ties), and Gaussian with an offset of 1e4. `sort`
is the textbook composition of sort, cumulative sum and gather; `Condat` is the scalar algorithm of
Condat (2016), compiled with -O3 -march=native and run on the same threads. Where a peer has lost
the offset, its error says so. The ceiling is the rate of reading memory, for a read and a write of
every number; 4 MiB fit the last cache.
"""

import torch
from harness import TOTAL, Case, Contender, GateError
from peers import simplex

NAME = "B3"
TITLE = "B3: projection onto the simplex"
SUBJECT = "kktorch"
MAIN_PEER = "sort"
PRICE = None
GROUPS = ["dtype", "variant"]
ROW = "shape"
CEILING = "B/s"
ERROR = "error against a float64 sort"
PLOTS = ["ratios"]
DTYPES = {"float32": torch.float32}
_LEVELS = 4.0
VARIANTS = {
    "gaussian": lambda z: z,
    "uniform": lambda z: torch.special.ndtr(z),
    "one-hot": lambda z: torch.nn.functional.one_hot(z.argmax(1), z.shape[1]).to(z.dtype),
    "ties": lambda z: (z * _LEVELS).round() / _LEVELS,
    "offset": lambda z: z + 1e4,
}


def shapes(variant: str, quick: bool) -> list[str]:
    return ["16x64"] if quick else ["16384x64", "4096x256", "1024x1024", "128x8192"]


def peers(shape: str, variant: str) -> list[str]:
    return [MAIN_PEER, f"compile({MAIN_PEER})", "Condat", "entmax.sparsemax", "entmax_bisect"]


def work(shape: str, variant: str) -> dict[str, float]:
    rows, length = map(int, shape.split("x"))
    return {TOTAL: 8.0 * rows * length}


def case(shape: str, dtype: str, variant: str) -> Case:
    rows, length = map(int, shape.split("x"))
    z = torch.randn(rows, length, generator=torch.Generator().manual_seed(1))
    v = VARIANTS[variant](z)
    torch._dynamo.reset()

    def subject(_):
        return torch.ops.kktorch.simplex_project(v)

    def check(contenders):
        expected = simplex.by_sort(v.double())
        errors = {
            each.name: {"w": float((each.phases[TOTAL](None).double() - expected).abs().max())}
            for each in contenders
        }
        # An offset leaves 1e4 * 6e-8 of the input itself; differences of inputs are exact.
        if errors[SUBJECT]["w"] > 1e-6:
            raise GateError(f"{shape} {variant}: the projection is off by {errors[SUBJECT]['w']}")
        return errors

    makers = {
        MAIN_PEER: lambda: simplex.by_sort,
        f"compile({MAIN_PEER})": lambda: torch.compile(simplex.by_sort, dynamic=False),
        "Condat": simplex.condat,
        "entmax.sparsemax": simplex.sparsemax,
        "entmax_bisect": simplex.bisect,
    }

    def contender(name):
        made = {}

        def step(_):
            if name not in made:  # here, where a peer that is missing is caught
                made[name] = makers[name]()
            return made[name](v)

        return Contender(name, {TOTAL: step})

    return Case(
        key={"shape": shape, "dtype": dtype, "variant": variant},
        subject=Contender(SUBJECT, {TOTAL: subject}),
        peers=[contender(name) for name in peers(shape, variant)],
        check=check,
        work=work(shape, variant),
    )
