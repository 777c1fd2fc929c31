"""Attention SVMs in the nuclear norm, solved from tokens and queries to a certified gap of 1e-4 in
float64; shapes are n x T x d. cvxpy includes the compilation of the problem; its solvers get the
explicit features, and SCS the loosest tolerance that reaches the gap, where one does. Where a
peer's W has a larger gap than asked for, the remarks say so. Larger shapes leave out peers that
would need too much time.
"""

import attention_svm
from harness import TOTAL, Case

NAME = "B6"
TITLE = "Attention SVM, nuclear norm"
SUBJECT = "kktorch"
MAIN_PEER = "cvxpy + SCS"
PRICE = None
GROUPS = ["dtype", "variant"]
ROW = "shape"
CEILING = None
ERROR = "gap of W"
PLOTS = []
DTYPES = attention_svm.DTYPES
VARIANTS = {"gap 1e-4": 1e-4}
_CLARABEL = "cvxpy + Clarabel"
_INTERIOR = 16  # largest d of the interior-point solver


def shapes(variant: str, quick: bool) -> list[str]:
    if quick:
        return ["3x3x3"]
    return ["5x5x8", "20x8x16", "50x8x32", "20x8x64", "100x8x64", "200x8x128"]


def peers(shape: str, variant: str) -> list[str]:
    width = attention_svm.sizes(shape)[2]
    return ([MAIN_PEER] if width <= 64 else []) + ([_CLARABEL] if width <= _INTERIOR else [])


def work(shape: str, variant: str) -> dict[str, float]:
    return {TOTAL: 0.0}


def case(shape: str, dtype: str, variant: str) -> Case:
    key = {"shape": shape, "dtype": dtype, "variant": variant}
    scs = attention_svm.scs("nuclear", (1e-4, 1e-5, 1e-6))
    makers = {MAIN_PEER: scs, _CLARABEL: attention_svm.clarabel("nuclear")}
    chosen = {name: makers[name] for name in peers(shape, variant)}
    return attention_svm.svm_case(key, "nuclear", VARIANTS[variant], chosen)
