"""Errors of attention against float64 on the same inputs, beside PyTorch's attention.

`python bench/accuracy.py` prints a table: root mean square of the error over that of the exact
values, for the output and every gradient. `BN` is Attention-BN, which PyTorch computes by queries
that take up the normalisation; `plain` is softmax attention.
"""

import itertools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import attention  # noqa: E402
from suites import b1  # noqa: E402

SHAPES = ["4x8x197x64", "2x4x512x64", "1x4x2048x64", "1x2x4096x128"]
RESULTS = ["out", "dq", "dk", "dv"]


def results(function, tensors, grad, problem, beta):
    """Output and gradients of q, k and v."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items() if name != "beta"}
    out = function(**leaves, beta=beta, problem=problem)
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad)]


def error(computed, exact):
    return ((computed.double() - exact).norm() / exact.norm()).item()


def main() -> None:
    print("| attention | dtype | shape | of | kktorch | PyTorch | kktorch / PyTorch |")
    print("|---|---|---|---|---:|---:|---:|")
    # With beta 0 and without a division the formula of Attention-BN is that of softmax attention.
    for attention_name, variant, beta in (("plain", "no-std", 0.0), ("BN", "std", 1.0)):
        for dtype_name, shape in itertools.product(attention.DTYPES, SHAPES):
            problem, tensors, grad = b1.inputs(
                shape, attention.DTYPES[dtype_name], b1.VARIANTS[variant]
            )
            exact = {name: t.double() for name, t in tensors.items() if name != "beta"}
            wanted = results(b1._literal, exact, grad.double(), problem, beta)
            ours = results(b1._kktorch, tensors, grad, problem, beta)
            theirs = results(b1._fold_sdpa, tensors, grad, problem, beta)
            for name, a, b, c in zip(RESULTS, ours, theirs, wanted, strict=True):
                mine, other = error(a, c), error(b, c)
                print(
                    f"| {attention_name} | {dtype_name} | {shape} | {name} | {mine:.2g} "
                    f"| {other:.2g} | {mine / other:.2f} |"
                )


if __name__ == "__main__":
    main()
