"""Errors of attention against float64 on the same inputs, beside PyTorch's attention.

`python bench/accuracy.py` prints a table: root mean square of the error over that of the exact
values, for the output and every gradient. Both compute Attention-BN; `fold + SDPA` is the same
function on scaled_dot_product_attention.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import attention  # noqa: E402
from suites import b1  # noqa: E402

SHAPES = ["4x8x197x64", "2x4x512x64", "1x4x2048x64", "1x2x4096x64", "1x2x4096x128"]
RESULTS = ["out", "dq", "dk", "dv"]


def results(function, tensors, grad, problem):
    """Output and gradients of q, k and v."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items() if name != "beta"}
    out = function(**leaves, beta=1.0, problem=problem)
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad)]


def error(computed, exact):
    return ((computed.double() - exact).norm() / exact.norm()).item()


def main() -> None:
    print("| dtype | shape | of | kktorch | fold + SDPA | kktorch / SDPA |")
    print("|---|---|---|---:|---:|---:|")
    for dtype_name, dtype in attention.DTYPES.items():
        for shape in SHAPES:
            problem, tensors, grad = b1.inputs(shape, dtype, b1.VARIANTS["std"])
            exact = {k: t.double() for k, t in tensors.items() if k != "beta"}
            wanted = results(b1._literal, exact, grad.double(), problem)
            ours = results(b1._kktorch, tensors, grad, problem)
            theirs = results(b1._fold_sdpa, tensors, grad, problem)
            for name, a, b, c in zip(RESULTS, ours, theirs, wanted, strict=True):
                mine, other = error(a, c), error(b, c)
                print(
                    f"| {dtype_name} | {shape} | {name} | {mine:.2g} | {other:.2g} "
                    f"| {mine / other:.2f} |"
                )


if __name__ == "__main__":
    main()
