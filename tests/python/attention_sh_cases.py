"""Inputs of the attention_sh tests: those of attention_bn, with the ways to make windows."""

import attention_bn_cases
import torch
from attention_bn_cases import Shape

op = torch.ops.kktorch.attention_sh
ref = torch.ops.kktorch.attention_sh_ref

DEFAULT = Shape(B=2, H=4, Hk=2, M=5, N=11, D=3, Dv=2)
# several windows of every scale and a short tail; causal attention has a kernel for M = N
SQUARE = DEFAULT._replace(M=11)
# modes of attention_bn_cases, not causal and causal, and the shape that exercises each
MODES = {"global": DEFAULT, "prefix": SQUARE}
MASKS = ("none", "padding", "bool[M,N]", "bool[B,H,M,N]")

# for two key heads; in DEFAULT a window may be short, padded to the end, or longer than the keys
WINDOWS = {
    "1": {"scales": [1]},
    "2,1": {"scales": [2, 1]},
    "3": {"scales": [3]},
    "2,50": {"scales": [2, 50]},
    "3,2-special": {"scales": [3, 2], "num_special": 2},
    "2,4-drop": {"scales": [2, 4], "tail": "drop"},
    "3,2-counted": {"scales": [3, 2], "count_weighting": True},
    "1,4-special-counted": {"scales": [1, 4], "num_special": 1, "count_weighting": True},
}

NORMS = {
    "plain": {"bn": False},
    "bn": {"bn": True},
    "bn-mean": {"bn": True, "use_std": False},
}


def problem(
    shape=None,
    mode="global",
    mask="none",
    windows="2,1",
    norm="bn",
    beta=("[H]", 0.7),
    seed=0,
    **options,
):
    """(query, key, value) in float64 and the options of one problem; NaN where keys are padded.

    Without normalisation there is no beta, which the op would ignore.
    """
    (q, k, v), options = attention_bn_cases.problem(
        shape or MODES[mode], mode, mask, beta, seed, **(WINDOWS[windows] | NORMS[norm] | options)
    )
    if norm == "plain":
        options.pop("beta", None)
    if "key_padding_mask" in options:
        padding = options["key_padding_mask"][:, None, :, None]
        k, v = (t.masked_fill(padding, torch.nan) for t in (k, v))
    return (q, k, v), options
