"""Time and peak memory of Attention-SH against the length: 2 samples, 4 heads of width 64 with
scales 1, 2, 4 and 8, peers of B2. The remarks to Attention-BN against the length hold here too.
"""

from suites.b2 import (  # noqa: F401
    CEILING,
    DTYPES,
    GROUPS,
    MAIN_PEER,
    PRICE,
    ROW,
    SUBJECT,
    case,
    peers,
    work,
)  # fmt: skip
from suites.e5bn import PLOTS, shapes  # noqa: F401

NAME = "E5SH"
TITLE = "E5: Attention-SH against the length"
VARIANTS = {"1-2-4-8": [1, 2, 4, 8]}
