"""Time and peak memory of Attention-BN against the length: 2 samples, 4 heads of width 64, variant
and peers of B1. Memory excludes the inputs, and what is compiled is not measured for it. The long
sequences run fewer rounds, and are checked on their first sample against the folded form in float64
rather than the literal one. Memory of attention that stores no T x T matrix must not be compared
with figures that count one.
"""

import attention
from suites.b1 import (  # noqa: F401
    CEILING,
    DTYPES,
    GROUPS,
    MAIN_PEER,
    PRICE,
    ROW,
    SUBJECT,
    Variant,
    case,
    peers,
    work,
)  # fmt: skip

NAME = "E5BN"
TITLE = "E5: Attention-BN against the length"
PLOTS = ["curves"]
VARIANTS = {"std": Variant()}


def shapes(variant: str, quick: bool) -> list[str]:
    return ["1x2x32x16", "1x2x64x16"] if quick else attention.LENGTHS
